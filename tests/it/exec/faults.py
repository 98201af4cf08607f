# Small mistakes of a handler, each of which may cost its own task alone; with "async" as an argument in one event loop.
import asyncio
import decimal
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../sdk/python"))
from weir import TaskError, serve


def fail(*arguments):
    raise TaskError(*arguments)


def surrogate(context):
    context.note("half \ud83d")
    print("half \ud83d")
    fail("half \ud83d")


class Odd(Exception):
    def __str__(self):
        raise ValueError("none")


def odd():
    raise Odd


def interrupt():
    raise KeyboardInterrupt


def record(context, **fields):
    context.record(**{"method": "GET", "url": "http://bank/", **fields})


DO = {
    "reason": lambda context, task: fail("too many", "retry", 429),
    "surrogate": lambda context, task: surrogate(context),
    "started": lambda context, task: record(context, started_ms=1_000.5),
    "before": lambda context, task: record(context, started_ms=-5),
    "text_status": lambda context, task: record(context, status="200"),
    "large_status": lambda context, task: record(context, status=99_999),
    "no_url": lambda context, task: record(context, url=None),
    "timing": lambda context, task: record(context, timings={"waiting_ms": float("nan")}),
    "nan": lambda context, task: {"amount": float("nan")},
    "half_output": lambda context, task: "\ud83d",
    "odd": lambda context, task: odd(),
    "exit": lambda context, task: sys.exit(3),
    "interrupt": lambda context, task: interrupt(),
    "unfinished": lambda context, task: print("one\nof unfinished", end=""),
    "other": lambda context, task: print("of other", end=""),
    "space": lambda context, task: context.request("GET", "http://bank/a b"),
    "refused": lambda context, task: context.request("GET", os.environ["REFUSED_URL"]),
    "input": lambda context, task: task["input"]["value"],
    "decimal": lambda context, task: decimal.Decimal("0.10"),
}


async def run(task, context):
    if task["input"]["do"] == "exit":
        # Once more, in a task that nobody waits for.
        asyncio.get_running_loop().create_task(leave())
    await asyncio.sleep(0)
    return DO[task["input"]["do"]](context, task)


async def leave():
    sys.exit(4)


is_async = "async" in sys.argv
handler = run if is_async else lambda task, context: DO[task["input"]["do"]](context, task)
serve(handler, concurrency=1 if "one" in sys.argv else 40, exact_numbers="exact" in sys.argv)
