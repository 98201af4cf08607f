// Small mistakes of a handler, each of which may cost its own task alone.
import { serve, TaskError } from "../../../sdk/node/weir.mjs";

const exchange = { method: "GET", url: "http://bank/" };
const DO = {
  reason: () => {
    throw new TaskError("too many", "retry", 429);
  },
  surrogate: (context) => {
    context.note("half \ud83d");
    console.log("half \ud83d");
    context.note("x".repeat(16_383) + "😀");
    throw new TaskError("half \ud83d");
  },
  started: (context) => context.record({ ...exchange, started_ms: 1_000.5 }),
  before: (context) => context.record({ ...exchange, started_ms: -5 }),
  text_status: (context) => context.record({ ...exchange, response: { status: "200" } }),
  large_status: (context) => context.record({ ...exchange, response: { status: 99_999 } }),
  no_url: (context) => context.record({ method: "GET" }),
  timing: (context) => context.record({ ...exchange, timings: { waiting_ms: NaN } }),
  nan: () => ({ amount: 0 / 0 }),
  half_output: () => "\ud83d",
  odd: () => {
    throw { toString: () => null, message: Symbol("s") };
  },
  unfinished: (context) => void process.stdout.write("one\nof unfinished"),
  other: () => void process.stdout.write("of other"),
  no_url_at_all: (context) => context.fetch("not a url"),
  refused: (context) => context.fetch(process.env.REFUSED_URL),
  late: (context) => context.fetch(process.env.BANK_URL + "/hang", { signal: AbortSignal.timeout(50) }),
  endless: (context) => context.fetch(process.env.BANK_URL + "/endless", { maxBytes: 1_000_000 }),
  input: (_context, task) => task.input.value,
};

serve(async (task, context) => DO[task.input.do](context, task), { concurrency: 40 });
