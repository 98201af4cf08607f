// weir's protocol for programs, version 1, for Node 18 or later: no dependencies. docs/exec.md has the whole of it.
//
//     import { serve, TaskError } from "./weir.mjs";
//     serve(async (task, context) => ({ greeting: `hello ${task.input.name}` }), { concurrency: 16 });
//
// Stdout belongs to the protocol: console.log and its kin, and what is written to process.stdout, become notes of the task
// that they are called in; without a task they go to stderr.

import { AsyncLocalStorage } from "node:async_hooks";
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { Writable } from "node:stream";
import { format } from "node:util";

const PROTOCOL = 1;
/** What weir keeps of a task's transcript by default; more is not worth sending. */
const MAX_NOTES = 1_000;
const MAX_NOTE_CHARACTERS = 16_384;
const MAX_EXCHANGES = 1_000;
const MAX_BODY_BYTES = 256 * 1024;
/** What is read of one response, where context.fetch is not told another `maxBytes`. */
const MAX_RESPONSE_BYTES = 64 * 1024 * 1024;
/** Longer lines are not sent: they must fit max_line_bytes, which is 8 MiB by default. */
const MAX_OUTPUT_BYTES = 7 * 1024 * 1024;
/** How long runs may go on beyond their deadlines when stdin has ended. */
const LAST_RUNS_MS = 5_000;
/** The year 9999. */
const LATEST_MS = 253_402_300_799_000;

const current = new AsyncLocalStorage();
const pause = new Int32Array(new SharedArrayBuffer(4));

/** A failure that says what may help: "none", "retry" or "user_action"; `reason` is a word such as "consent_expired". */
export class TaskError extends Error {
  constructor(message, remedy = "none", reason = undefined) {
    super(message);
    this.name = "TaskError";
    this.remedy = remedy;
    this.reason = reason;
  }
}

/**
 * Runs tasks until weir says that it is over. `handler(task, context)` returns the output, or a promise of it; the task
 * has id, integration, tenant, priority and input. `concurrency` is how many tasks it can have at a time.
 */
export function serve(handler, { concurrency = 1 } = {}) {
  const runs = new Map();
  keepStdoutClean();
  for (const event of ["unhandledRejection", "uncaughtException"]) {
    process.on(event, (error) => {
      const run = current.getStore();
      if (!run || run.isOver) {
        console.error(error);
        if (!run) process.exit(1); // Whose it is is not known, nor what state this leaves behind.
        return;
      }
      run.abort(error);
      fail(run, error);
    });
  }
  const lines = createInterface({ input: process.stdin, crlfDelay: Infinity });
  lines.on("line", (line) => {
    const message = parsed(line);
    if (!message) return;
    if (message.type === "cancel") {
      runs.get(message.run)?.abort(new TaskError(`cancelled: ${message.reason}`, "retry"));
    } else if (message.type === "task") {
      const run = new Run(message, () => runs.delete(message.run));
      runs.set(message.run, run);
      current.run(run, () => perform(handler, run));
    }
  });
  lines.on("close", async () => {
    // When weir itself is gone, nobody ends what hangs.
    const latest = Math.max(0, ...[...runs.values()].map((run) => run.remaining));
    setTimeout(() => process.exit(1), latest + LAST_RUNS_MS).unref();
    await Promise.allSettled([...runs.values()].map((run) => run.ended));
    process.exit(0);
  });
  say({ type: "ready", protocol: PROTOCOL, concurrency });
}

/** A line of weir's; a task that cannot be read is answered for, and none of the others hears of it. */
function parsed(line) {
  try {
    return JSON.parse(line);
  } catch (error) {
    const run = /^\{"type":"task","run":"([0-9a-f-]{36})"/.exec(line)?.[1];
    if (!run) throw error;
    say({ type: "outcome", run, error: { message: "Node cannot read the input", remedy: "none" } });
    return undefined;
  }
}

async function perform(handler, run) {
  try {
    run.answer({ output: (await handler(run.task, run)) ?? null });
  } catch (error) {
    fail(run, error);
  }
}

function fail(run, error) {
  if (!(error instanceof TaskError)) {
    // Where it happened, without the message: the outcome has it.
    const places = said(error, "stack").split("\n").filter((line) => /^ +at /.test(line));
    if (places.length > 0) run.note(places.slice(0, 8).map((line) => line.trim()).join("; "));
  }
  run.answer({ error: failure(error) });
}

/** One run of a task: what the handler gets as its context. */
class Run {
  #id;
  #controller = new AbortController();
  #notes = 0;
  #exchanges = 0;
  #printed = "";
  #end;
  #over;

  constructor({ run, task, timeout_ms }, end) {
    this.#id = run;
    this.#end = end;
    this.task = task;
    this.isOver = false;
    /** When the caller stops waiting, in milliseconds as Date.now() counts them. */
    this.deadline = Date.now() + timeout_ms;
    this.ended = new Promise((resolve) => (this.#over = resolve));
  }

  /** Aborted when the task is to stop: stop then, or weir stops this process. */
  get signal() {
    return this.#controller.signal;
  }

  /** Until the deadline, in milliseconds. */
  get remaining() {
    return Math.max(0, this.deadline - Date.now());
  }

  /** Adds a remark to the task's transcript. */
  note(text) {
    const fields = { type: "note", run: this.#id, text: cut(wellFormed(text)) };
    if (this.isOver || this.#notes++ >= MAX_NOTES) return;
    say(fields);
  }

  /** For process.stdout: makes notes of whole lines; what has no end yet waits for it, or for the end of the run. */
  print(text) {
    const lines = (this.#printed + text).split("\n");
    this.#printed = lines.pop().slice(-MAX_NOTE_CHARACTERS);
    for (const line of lines) this.note(line);
  }

  /** Has a token or a password removed wherever the transcript, the input or the output hold it. */
  secret(value) {
    if (!this.isOver) say({ type: "secret", run: this.#id, value: wellFormed(value) });
  }

  /** Adds an exchange to the transcript; docs/exec.md has its fields. Bodies are strings or Uint8Arrays. */
  record({ method, url, started_ms = Date.now(), request, response, error, timings }) {
    if (method === undefined || url === undefined) throw new TypeError("record: method and url are needed");
    const fields = { method: wellFormed(method), url: wellFormed(url), request: message(request ?? {}) };
    fields.started_ms = Math.min(Math.max(0, Math.round(finite("started_ms", started_ms))), LATEST_MS);
    if (response) {
      const status = Number(response.status);
      if (!Number.isInteger(status) || status < 100 || status > 999) {
        throw new TypeError("record: response.status is a number of three digits");
      }
      fields.response = { status, ...message(response) };
    }
    if (error !== undefined && error !== null) fields.error = cut(wellFormed(error));
    const times = Object.entries(timings ?? {}).filter(([, ms]) => ms !== undefined && ms !== null);
    fields.timings = Object.fromEntries(times.map(([name, ms]) => [name, finite(`timings.${name}`, ms)]));
    if (this.isOver || this.#exchanges++ >= MAX_EXCHANGES) return;
    say({ type: "exchange", run: this.#id, exchange: fields });
  }

  /**
   * The global fetch, recorded, its body read to the end, and given up when the task is to stop. A body of more than
   * `options.maxBytes` is an error.
   */
  async fetch(input, { maxBytes = MAX_RESPONSE_BYTES, ...options } = {}) {
    const signals = [this.signal, options.signal].filter(Boolean);
    const request = new Request(input, { ...options, signal: anyOf(signals) });
    const body = request.body ? new Uint8Array(await request.clone().arrayBuffer()) : undefined;
    const started_ms = Date.now();
    const began = performance.now();
    const exchange = { method: request.method, url: request.url, started_ms, timings: {} };
    exchange.request = { headers: [...request.headers], body };
    try {
      const response = await fetch(request);
      const answered = performance.now();
      exchange.timings.waiting_ms = answered - began;
      exchange.response = { status: response.status, headers: [...response.headers] };
      const bytes = await readBody(response, maxBytes, exchange.response);
      exchange.timings.receiving_ms = performance.now() - answered;
      const { status, statusText, headers, url } = response;
      const read = new Response([204, 205, 304].includes(status) ? null : bytes, { status, statusText, headers });
      return Object.defineProperty(read, "url", { value: url });
    } catch (error) {
      exchange.error = said(error?.cause?.message ? error.cause : error);
      throw error;
    } finally {
      this.record(exchange);
    }
  }

  /** For serve(): tells the handler to stop. */
  abort(why) {
    this.#controller.abort(why);
  }

  /** For serve(): sends the outcome, once. */
  answer(result) {
    if (this.isOver) return;
    if (this.#printed) this.print("\n");
    let line;
    try {
      line = JSON.stringify({ type: "outcome", run: this.#id, ...result }, numbersThatJsonHas);
      if (Buffer.byteLength(line) > MAX_OUTPUT_BYTES) {
        throw new TaskError(`the output has more than ${MAX_OUTPUT_BYTES} bytes`);
      }
    } catch (error) {
      line = JSON.stringify({ type: "outcome", run: this.#id, error: failure(error) });
    }
    this.isOver = true;
    this.#end();
    write(line);
    this.#over();
  }
}

function failure(error) {
  const message = said(error);
  if (error instanceof TaskError) {
    const { remedy = "none", reason } = error;
    const said = { message, remedy: wellFormed(remedy) };
    return reason === null || reason === undefined ? said : { ...said, reason: wellFormed(reason) };
  }
  // A network that failed, or was too slow, may work again; anything else would most likely fail again.
  if (error?.name === "TimeoutError") return { message, remedy: "retry" };
  const cause = error instanceof TypeError ? error.cause?.code : undefined;
  if (typeof cause !== "string") return { message };
  return { message: `${message}: ${cause}`, remedy: /^(UND_)?ERR_INVALID/.test(cause) ? "none" : "retry" };
}

/** The message of whatever was thrown, even of what has none that can be had. */
function said(error, field = "message") {
  try {
    return cut(wellFormed(error?.[field] ?? error));
  } catch {
    return "(its message cannot be read)";
  }
}

/** A text that can be sent: of half a character a replacement is left. */
function wellFormed(value) {
  const text = String(value);
  return text.toWellFormed?.() ?? Buffer.from(text, "utf8").toString("utf8");
}

/** Cuts a text, and no character in two. */
function cut(text) {
  if (text.length <= MAX_NOTE_CHARACTERS) return text;
  const last = text.charCodeAt(MAX_NOTE_CHARACTERS - 1);
  return text.slice(0, last >= 0xd800 && last <= 0xdbff ? MAX_NOTE_CHARACTERS - 1 : MAX_NOTE_CHARACTERS);
}

function finite(name, value) {
  const number = Number(value);
  if (!Number.isFinite(number)) throw new TypeError(`record: ${name} is a finite number of milliseconds`);
  return number;
}

/** For JSON.stringify, which would write null for them. */
function numbersThatJsonHas(key, value) {
  if (typeof value !== "number" || Number.isFinite(value)) return value;
  throw new TaskError(`the output holds ${value}, which is no number of JSON, at ${JSON.stringify(cut(key))}`);
}

function message({ headers = [], body = undefined }) {
  const pairs = typeof headers?.[Symbol.iterator] === "function" ? [...headers] : Object.entries(headers ?? {});
  const fields = { headers: pairs.map(([name, value]) => [wellFormed(name), wellFormed(value)]) };
  if (body === undefined || body === null) return fields;
  if (typeof body !== "string" && !ArrayBuffer.isView(body)) {
    throw new TypeError("record: a body is a string or a Uint8Array");
  }
  const whole = typeof body === "string" ? Buffer.from(body) : Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  const kept = whole.subarray(0, MAX_BODY_BYTES);
  const text = kept.toString("utf8");
  const isText = Buffer.from(text, "utf8").equals(kept);
  return { ...fields, body: isText ? text : kept.toString("base64"), base64: !isText, body_bytes: whole.length };
}

/** Reads a body to its end, or to a limit; what was read is recorded in either case. */
async function readBody(response, maxBytes, recorded) {
  const chunks = [];
  let length = 0;
  try {
    const reader = response.body?.getReader();
    for (;;) {
      const { done, value } = (await reader?.read()) ?? { done: true };
      if (done) return (recorded.body = Buffer.concat(chunks));
      length += value.length;
      chunks.push(value);
      if (length > maxBytes) {
        reader.cancel().catch(() => {});
        throw new TaskError(`a response has more than ${maxBytes} bytes`);
      }
    }
  } finally {
    recorded.body ??= Buffer.concat(chunks);
  }
}

function anyOf(signals) {
  if (AbortSignal.any) return AbortSignal.any(signals);
  const controller = new AbortController();
  for (const signal of signals) {
    if (signal.aborted) controller.abort(signal.reason);
    else signal.addEventListener("abort", () => controller.abort(signal.reason), { once: true });
  }
  return controller.signal;
}

function say(message) {
  write(JSON.stringify(message));
}

/** Writes at once, so that what was said before a handler blocks or the process ends is not lost in a buffer. */
function write(line) {
  let rest = Buffer.from(line + "\n");
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(1, rest));
    } catch (error) {
      if (error.code !== "EAGAIN") process.exit(1); // Nobody listens any more.
      Atomics.wait(pause, 0, 0, 1);
    }
  }
}

function keepStdoutClean() {
  const stdout = new Writable({
    decodeStrings: false,
    write(chunk, _encoding, done) {
      const run = current.getStore();
      if (run) run.print(String(chunk));
      else process.stderr.write(chunk);
      done();
    },
  });
  Object.defineProperty(process, "stdout", { configurable: true, get: () => stdout });
  for (const level of ["debug", "log", "info", "warn", "error"]) {
    console[level] = (...values) => {
      const run = current.getStore();
      if (run) run.note(format(...values));
      else process.stderr.write(format(...values) + "\n");
    };
  }
}
