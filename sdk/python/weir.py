"""weir's protocol for programs, version 1, for Python 3.9 or later: the standard library only.

    from weir import serve

    def greet(task, context):
        return {"greeting": "hello " + task["input"]["name"]}

    serve(greet, concurrency=16)

docs/exec.md has the whole of it. A handler is a function, run in a thread of its own, or a coroutine function, run in
one event loop with all others. Stdout belongs to the protocol: what a handler prints becomes notes of its task, and
whatever else writes to stdout goes to stderr.
"""

import asyncio
import base64
import contextvars
import decimal
import http.client
import inspect
import json
import math
import os
import re
import socket
import sys
import threading
import time
import traceback
import urllib.parse
import uuid
from concurrent.futures import ThreadPoolExecutor

__all__ = ["serve", "Cancelled", "Response", "TaskError"]

PROTOCOL = 1
# What weir keeps of a task's transcript by default; more is not worth sending.
MAX_NOTES = 1_000
MAX_NOTE_CHARACTERS = 16_384
MAX_EXCHANGES = 1_000
MAX_BODY_BYTES = 256 * 1024
# Longer lines are not sent: they must fit max_line_bytes, which is 8 MiB by default.
MAX_OUTPUT_BYTES = 7 * 1024 * 1024
# What is read of one response.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
# Below weir's cancel_grace: a thread that connects cannot be woken.
CONNECT_SECONDS = 1.5
# The year 9999.
LATEST_MS = 253_402_300_799_000
# How long runs may go on beyond their deadlines when stdin has ended.
LAST_RUNS_SECONDS = 5.0

# How weir begins a task's line, for the case that the rest of it cannot be read.
_TASK = re.compile(rb'\{"type":"task","run":"([0-9a-f-]{36})"')

# json writes no Decimal: its digits are put where this stands, which no text can hold by chance.
_MARK = "weir-decimal-" + uuid.uuid4().hex

_current = contextvars.ContextVar("weir_run", default=None)


class TaskError(Exception):
    """A failure that says what may help: "none", "retry" or "user_action"; `reason` is a word like "consent_expired"."""

    def __init__(self, message, remedy="none", reason=None):
        super().__init__(message)
        self.remedy, self.reason = remedy, reason


class Cancelled(TaskError):
    """The task is to stop."""

    def __init__(self, reason):
        super().__init__("cancelled: " + reason, "retry")


class Response:
    """What a server answered: `status`, `headers` (a list of pairs) and `body` (bytes)."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def header(self, name):
        """The first header of this name, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self, exact_numbers=False):
        """The body as JSON; with `exact_numbers` its decimals are decimal.Decimal and keep all their digits."""
        return _parsed(self.body, exact_numbers)


class Context:
    """One run of a task, as its handler sees it."""

    def __init__(self, channel, message):
        self._channel, self._run = channel, message["run"]
        self._lock, self._stop, self._reason = threading.Lock(), threading.Event(), None
        self._connections, self._task = set(), None
        self._notes, self._exchanges, self._is_over, self._printed = 0, 0, False, ""
        #: When the caller stops waiting, as time.monotonic() counts.
        self.deadline = time.monotonic() + message["timeout_ms"] / 1000

    @property
    def remaining(self):
        """Until the deadline, in seconds."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def cancelled(self):
        """Whether the task is to stop: stop then, or weir stops this process."""
        return self._stop.is_set()

    def check(self):
        """Raises Cancelled when the task is to stop."""
        if self._stop.is_set():
            raise Cancelled(self._reason)

    def sleep(self, seconds):
        """Sleeps, in a thread; raises Cancelled when the task is to stop."""
        self._stop.wait(seconds)
        self.check()

    def note(self, text):
        """Adds a remark to the task's transcript."""
        text = _text(text)[:MAX_NOTE_CHARACTERS]
        with self._lock:
            self._notes += 1
            if self._is_over or self._notes > MAX_NOTES:
                return
        self._channel.say({"type": "note", "run": self._run, "text": text})

    def secret(self, value):
        """Has a token or a password removed wherever the transcript, the input or the output hold it."""
        if not self._is_over:
            self._channel.say({"type": "secret", "run": self._run, "value": _text(value)})

    def record(self, method, url, request_headers=(), request_body=None, status=None, response_headers=(),
               response_body=None, error=None, started_ms=None, timings=None):
        """Adds an exchange to the transcript, for clients other than `request`. Headers are pairs or a dict, bodies str
        or bytes, timings milliseconds: blocked_ms, waiting_ms, receiving_ms. Without a status there was no answer."""
        if method is None or url is None:
            raise TypeError("record: method and url are needed")
        exchange = {"method": _text(method), "url": _text(url), "request": _message(request_headers, request_body),
                    "started_ms": min(max(0, int(time.time() * 1000 if started_ms is None else started_ms)), LATEST_MS)}
        if status is not None:
            if not 100 <= int(status) <= 999:
                raise ValueError("record: a status is a number of three digits")
            exchange["response"] = {"status": int(status), **_message(response_headers, response_body)}
        if error is not None:
            exchange["error"] = _text(error)[:MAX_NOTE_CHARACTERS]
        if timings:
            exchange["timings"] = {str(name): float(value) for name, value in timings.items()}
            if not all(map(math.isfinite, exchange["timings"].values())):
                raise ValueError("record: timings are finite numbers of milliseconds")
        with self._lock:
            self._exchanges += 1
            if self._is_over or self._exchanges > MAX_EXCHANGES:
                return
        self._channel.say({"type": "exchange", "run": self._run, "exchange": exchange})

    def request(self, method, url, headers=None, body=None, timeout=None):
        """Sends one HTTP request, in a thread, and records it. Returns a Response whatever its status is; redirects are
        not followed. It ends with the task's deadline, and at once when the task is to stop."""
        body = body.encode() if isinstance(body, str) else body
        headers = dict(headers or {})
        seconds = self.remaining if timeout is None else min(timeout, self.remaining)
        started, began, answered = time.time(), time.monotonic(), None
        status, response_headers, answer, error = None, (), None, None
        connection = _connection(url, seconds)
        try:
            self._open(connection)
            connection.connect()
            connection.sock.settimeout(seconds)
            parts = urllib.parse.urlsplit(url)
            self.check()
            connection.request(method, (parts.path or "/") + ("?" + parts.query if parts.query else ""), body, headers)
            response = connection.getresponse()
            answered = time.monotonic()
            status, response_headers = response.status, response.getheaders()
            answer = response.read(MAX_RESPONSE_BYTES + 1)
            if len(answer) > MAX_RESPONSE_BYTES:
                raise TaskError("a response has more than %d bytes" % MAX_RESPONSE_BYTES)
            self.check()
            return Response(status, response_headers, answer)
        except (OSError, http.client.HTTPException) as problem:
            error = str(problem) or type(problem).__name__
            self.check()
            raise TaskError("%s %s: %s" % (method, _shown(url), error), "retry") from problem
        except Exception as problem:
            error = str(problem)
            raise
        finally:
            self._close(connection)
            ended = time.monotonic()
            timings = {"waiting_ms": ((answered or ended) - began) * 1000}
            if answered is not None:
                timings["receiving_ms"] = (ended - answered) * 1000
            self.record(method, url, headers, body, status, response_headers, answer, error, started * 1000, timings)

    def _open(self, connection):
        with self._lock:
            self._connections.add(connection)
        self.check()

    def _close(self, connection):
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _cancel(self, reason):
        with self._lock:
            self._reason = reason
            self._stop.set()
            connections, task = list(self._connections), self._task
        for connection in connections:
            # Wakes the thread that reads or writes.
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except (AttributeError, OSError):
                pass
        if task is not None:
            task.get_loop().call_soon_threadsafe(task.cancel)

    def _print(self, text):
        """Makes notes of whole lines; what has no end yet waits for it, or for the end of the run."""
        with self._lock:
            *lines, rest = (self._printed + text).split("\n")
            self._printed = rest[-MAX_NOTE_CHARACTERS:]
        for line in lines:
            self.note(line)

    def _answer(self, **result):
        if self._printed:
            self._print("\n")
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        try:
            line = _line({"type": "outcome", "run": self._run, **result})
            if len(line) > MAX_OUTPUT_BYTES:
                raise TaskError("the output has more than %d bytes" % MAX_OUTPUT_BYTES)
        except Exception as error:
            line = _line({"type": "outcome", "run": self._run, "error": _failure(error)})
        self._channel.write(line)


class _Channel:
    """Stdout, kept for the protocol: everybody else's stdout is stderr from here on."""

    def __init__(self):
        sys.stdout.flush()
        self._out, self._lock = os.dup(1), threading.Lock()
        os.dup2(2, 1)
        sys.stdout = _Printed(sys.stderr)

    def say(self, message):
        self.write(_line(message))

    def write(self, line):
        with self._lock:
            try:
                view = memoryview(line)
                while view:
                    view = view[os.write(self._out, view):]
            except OSError:
                os._exit(1)  # Nobody listens any more.


class _Printed:
    """What is printed: notes of the task that prints, line by line."""

    def __init__(self, otherwise):
        self._otherwise = otherwise

    def write(self, text):
        context = _current.get()
        if context is None:
            return self._otherwise.write(text)
        context._print(text)
        return len(text)

    def flush(self):
        self._otherwise.flush()

    def __getattr__(self, name):
        return getattr(self._otherwise, name)


def serve(handler, concurrency=1, exact_numbers=False):
    """Runs tasks until weir says that it is over. `handler(task, context)` returns the output; the task is a dict with
    id, integration, tenant, priority and input. `concurrency` is how many tasks it can have at a time. With
    `exact_numbers` the decimals of an input are decimal.Decimal, which keep all their digits; without they are floats,
    which do not. An output may hold Decimals in any case."""
    channel, contexts = _Channel(), {}
    perform, finish = (_in_loop if inspect.iscoroutinefunction(handler) else _in_threads)(handler, concurrency)
    channel.say({"type": "ready", "protocol": PROTOCOL, "concurrency": concurrency})
    for line in sys.stdin.buffer:
        try:
            message = _parsed(line, exact_numbers)
        except Exception as error:
            # The input holds what Python does not read: a number of thousands of digits, lists a thousand deep.
            run = _TASK.match(line)
            if run is None:
                raise
            why = {"message": "Python cannot read the input: " + _said(error), "remedy": "none"}
            channel.say({"type": "outcome", "run": run.group(1).decode(), "error": why})
            continue
        if message["type"] == "cancel":
            context = contexts.get(message["run"])
            if context is not None:
                context._cancel(message["reason"])
        elif message["type"] == "task":
            context = Context(channel, message)
            contexts[message["run"]] = context
            perform(message["task"], context, lambda run=message["run"]: contexts.pop(run, None))
    # When weir itself is gone, nobody ends what hangs.
    latest = max([context.remaining for context in list(contexts.values())], default=0)
    last = threading.Timer(latest + LAST_RUNS_SECONDS, os._exit, [1])
    last.daemon = True
    last.start()
    finish()


def _in_threads(handler, concurrency):
    threads = ThreadPoolExecutor(concurrency, thread_name_prefix="task")

    def perform(task, context, end):
        def run():
            _current.set(context)
            try:
                output = handler(task, context)
            except BaseException as error:
                # sys.exit(), too, ends this task and no other.
                context._answer(error=_failure(error))
            else:
                context._answer(output=output)
            finally:
                end()

        threads.submit(contextvars.copy_context().run, run)

    return perform, lambda: threads.shutdown(wait=True)


def _in_loop(handler, _concurrency):
    loop, tasks = asyncio.new_event_loop(), set()
    ended = threading.Event()

    def turn():
        while not ended.is_set():
            try:
                loop.run_forever()
            except BaseException:  # An exit in what a handler has started: the other tasks go on.
                traceback.print_exc()

    thread = threading.Thread(target=turn, name="tasks", daemon=True)
    thread.start()

    async def run(task, context, end):
        _current.set(context)
        with context._lock:
            context._task = asyncio.current_task()
        try:
            context.check()
            output = await handler(task, context)
        except asyncio.CancelledError:
            context._answer(error=_failure(Cancelled(context._reason or "cancelled")))
        except BaseException as error:
            context._answer(error=_failure(error))
        else:
            context._answer(output=output)
        finally:
            with context._lock:
                context._task = None
            end()

    def perform(task, context, end):
        future = asyncio.run_coroutine_threadsafe(run(task, context, end), loop)
        tasks.add(future)
        future.add_done_callback(tasks.discard)

    def finish():
        for future in list(tasks):
            try:
                future.result()
            except BaseException:
                pass
        ended.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    return perform, finish


def _failure(error):
    if isinstance(error, TaskError):
        failure = {"message": _said(error), "remedy": _text(error.remedy)}
        if error.reason is not None:
            failure["reason"] = _text(error.reason)
        return failure
    context = _current.get()
    if context is not None:
        # Where it happened, without the values: they may be somebody's data.
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        context.note("; ".join("%s:%s in %s" % (f.filename, f.lineno, f.name) for f in frames))
    return {"message": "%s: %s" % (type(error).__name__, _said(error))}


def _said(error):
    """The text of an exception, even of one that has none that can be had."""
    try:
        return _text(error)[:MAX_NOTE_CHARACTERS]
    except Exception:
        return "(its message cannot be read)"


def _text(value):
    """A text that can be sent: of half a character a replacement is left."""
    text = str(value)
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _message(headers, body):
    pairs = headers.items() if hasattr(headers, "items") else headers
    fields = {"headers": [[_text(name), _text(value)] for name, value in pairs]}
    if body is None:
        return fields
    if not isinstance(body, (str, bytes, bytearray, memoryview)):
        raise TypeError("record: a body is a str or bytes")
    whole = _text(body).encode() if isinstance(body, str) else bytes(body)
    kept = whole[:MAX_BODY_BYTES]
    try:
        text, is_text = kept.decode(), True
    except UnicodeDecodeError:
        text, is_text = base64.b64encode(kept).decode(), False
    return {**fields, "body": text, "base64": not is_text, "body_bytes": len(whole)}


def _connection(url, seconds):
    # Before urlsplit, which passes over some of them, and before a connection that may fail in another way.
    if re.search(r"[\x00-\x20\x7f]", url):
        raise TaskError("not a URL: it holds a space or a control character")
    parts = urllib.parse.urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise TaskError("not an http or https URL")
    return kinds[parts.scheme](parts.hostname, parts.port, timeout=max(0.001, min(seconds, CONNECT_SECONDS)))


def _shown(url):
    """A URL as messages show it: without its query, which may hold somebody's data."""
    parts = urllib.parse.urlsplit(url)
    return "%s://%s" % (parts.scheme, parts.hostname)


def _parsed(text, exact_numbers):
    return json.loads(text, parse_float=decimal.Decimal if exact_numbers else None)


def _line(message):
    decimals = []

    def default(value):
        if not isinstance(value, decimal.Decimal):
            raise TypeError("%s is no JSON" % type(value).__name__)
        if not value.is_finite():
            raise ValueError("NaN and Infinity are no JSON")
        decimals.append(str(value))
        return _MARK

    options = {"separators": (",", ":"), "allow_nan": False, "default": default}
    text = json.dumps(message, ensure_ascii=False, **options)
    if decimals:
        digits = iter(decimals)
        text = re.sub('"%s"' % _MARK, lambda _: next(digits), text)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        # Half a character in an output stays what it was: an escape.
        escaped = (c if not "\ud800" <= c <= "\udfff" else "\\u%04x" % ord(c) for c in text)
        return "".join(escaped).encode() + b"\n"
