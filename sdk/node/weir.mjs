// weir's protocol for programs, version 1, for Node 18 or later: no dependencies. docs/exec.md has the whole of it.
//
//     import { serve, TaskError } from "./weir.mjs";
//     serve(async (task, context) => ({ greeting: `hello ${task.input.name}` }), { concurrency: 16 });
//
// Stdout belongs to the protocol: console.log and its kin become notes of the task that they are called in, and
// anything else that is written to stdout goes to stderr.

import { AsyncLocalStorage } from "node:async_hooks";
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { format } from "node:util";

const PROTOCOL = 1;
/** What weir keeps of a task's transcript by default; more is not worth sending. */
const MAX_NOTES = 1_000;
const MAX_NOTE_CHARACTERS = 16_384;
const MAX_EXCHANGES = 1_000;
const MAX_BODY_BYTES = 256 * 1024;
/** Longer lines are not sent: they must fit max_line_bytes, which is 8 MiB by default. */
const MAX_OUTPUT_BYTES = 7 * 1024 * 1024;
/** How long runs may go on beyond their deadlines when stdin has ended. */
const LAST_RUNS_MS = 5_000;

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
    const message = JSON.parse(line);
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
    const places = String(error?.stack ?? "").split("\n").filter((line) => /^ +at /.test(line));
    run.note(places.slice(0, 8).map((line) => line.trim()).join("; "));
  }
  run.answer({ error: failure(error) });
}

/** One run of a task: what the handler gets as its context. */
class Run {
  #id;
  #controller = new AbortController();
  #notes = 0;
  #exchanges = 0;
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
    if (this.isOver || this.#notes++ >= MAX_NOTES) return;
    say({ type: "note", run: this.#id, text: String(text).slice(0, MAX_NOTE_CHARACTERS) });
  }

  /** Has a token or a password removed wherever the transcript, the input or the output hold it. */
  secret(value) {
    if (!this.isOver) say({ type: "secret", run: this.#id, value: String(value) });
  }

  /** Adds an exchange to the transcript; docs/exec.md has its fields. Bodies are strings or Uint8Arrays. */
  record({ request = {}, response = undefined, ...exchange }) {
    if (this.isOver || this.#exchanges++ >= MAX_EXCHANGES) return;
    const fields = { ...exchange, request: message(request) };
    if (response) fields.response = { status: response.status, ...message(response) };
    say({ type: "exchange", run: this.#id, exchange: fields });
  }

  /** The global fetch, recorded, its body read to the end, and given up when the task is to stop. */
  async fetch(input, options = {}) {
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
      const bytes = new Uint8Array(await response.arrayBuffer());
      exchange.timings.receiving_ms = performance.now() - answered;
      exchange.response.body = bytes;
      const { status, statusText, headers, url } = response;
      const read = new Response([204, 205, 304].includes(status) ? null : bytes, { status, statusText, headers });
      return Object.defineProperty(read, "url", { value: url });
    } catch (error) {
      exchange.error = String(error?.cause?.message ?? error?.message ?? error);
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
    let line;
    try {
      line = JSON.stringify({ type: "outcome", run: this.#id, ...result });
      if (Buffer.byteLength(line) > MAX_OUTPUT_BYTES) throw new TaskError(`the output has more than ${MAX_OUTPUT_BYTES} bytes`);
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
  const message = String(error?.message ?? error);
  if (error instanceof TaskError) return { message, remedy: error.remedy, reason: error.reason };
  // A network that failed may work again; anything else would most likely fail again.
  const cause = error?.cause?.code ?? error?.cause?.name;
  return cause && error instanceof TypeError ? { message: `${message}: ${cause}`, remedy: "retry" } : { message };
}

function message({ headers = [], body = undefined }) {
  const pairs = typeof headers[Symbol.iterator] === "function" ? [...headers] : Object.entries(headers);
  const fields = { headers: pairs.map(([name, value]) => [String(name), String(value)]) };
  if (body === undefined || body === null) return fields;
  const whole = typeof body === "string" ? Buffer.from(body) : Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  const kept = whole.subarray(0, MAX_BODY_BYTES);
  const text = kept.toString("utf8");
  const isText = Buffer.from(text, "utf8").equals(kept);
  return { ...fields, body: isText ? text : kept.toString("base64"), base64: !isText, body_bytes: whole.length };
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
  Object.defineProperty(process, "stdout", { configurable: true, get: () => process.stderr });
  for (const level of ["debug", "log", "info", "warn", "error"]) {
    console[level] = (...values) => {
      const run = current.getStore();
      if (run) run.note(format(...values));
      else process.stderr.write(format(...values) + "\n");
    };
  }
}
