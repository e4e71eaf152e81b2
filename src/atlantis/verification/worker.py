"""What runs in a worker process: one task after another from a connection.

A process of its own, because symbolic algebra may hang or eat all memory, and because signals,
which could stop it in Python code only, work in main threads only. It is started as a fresh
interpreter rather than by multiprocessing, which would import the main module once more.
"""

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

Task = tuple[Any, ...]
Handler = Callable[..., Any]
_ORPHAN_GRACE_SECONDS = 5.0
_LONGEST_DETAIL = 300
_NEARLY_ALL = 0.95


class Job(NamedTuple):
    """What a worker does, as JSON on its command line."""

    kind: Literal["math_verify", "function"]
    function: str | None
    """``module:function``, for the second kind."""
    memory_bytes: int | None
    """Largest address space; None for no limit."""
    deadline_seconds: float


class Reply(NamedTuple):
    """What a worker sends back: first about its start, then one for each task."""

    ok: bool
    value: Any
    """The result, or one line on what went wrong."""
    is_last: bool = False
    """Whether the worker ends here: after it ran out of memory, the next task gets a new one."""


def serve(descriptor: int, job: Job) -> None:
    """Answer tasks until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if job.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (job.memory_bytes, job.memory_bytes))
    connection = Connection(descriptor)
    try:
        handlers = _handlers(job)
    except BaseException as error:
        connection.send(Reply(False, describe(error)))
        return
    connection.send(Reply(True, None))
    while (task := _next_task(connection)) is not None:
        # If the other end is gone, nobody kills a task that hangs: the system does, even within a
        # computation that does not look at signals.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job.deadline_seconds + _ORPHAN_GRACE_SECONDS)
        name, *arguments = task
        try:
            reply = Reply(True, handlers[name](*arguments))
        except BaseException as error:  # a SystemExit or a time-out of the task's own included
            reply = Reply(False, describe(error))
            exhausted = isinstance(error, MemoryError)
        else:
            exhausted = _reached(job.memory_bytes)
            if exhausted:
                reply = Reply(False, "MemoryError: out of memory, which the task concealed")
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(reply._replace(is_last=exhausted))
        if exhausted:
            return


def _reached(memory_bytes: int | None) -> bool:
    """Whether this process ever came near its limit: sympy turns a `MemoryError` into "unequal"."""
    if memory_bytes is None:
        return False
    with open("/proc/self/status", "rb") as status:
        peak = next(line for line in status if line.startswith(b"VmPeak"))
    return int(peak.split()[1]) * 1024 > _NEARLY_ALL * memory_bytes


def describe(error: BaseException) -> str:
    """An exception in one line, with the place in the code where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    reason = " ".join(str(error).split()) or "no message"
    if isinstance(error, MemoryError):
        reason = "out of memory"
    return f"{type(error).__name__}: {reason}"[:_LONGEST_DETAIL] + place


def load_function(reference: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Raises:
        ValueError: The text has another form, or names something that cannot be called.
    """
    module, _, name = reference.partition(":")
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{reference} cannot be called")
    return found


def _next_task(connection: "Connection[Any, Any]") -> Task | None:
    try:
        return connection.recv()
    except EOFError:
        return None


def _handlers(job: Job) -> dict[str, Handler]:
    if job.kind == "math_verify":
        from atlantis.verification.graders import SymbolicGrader

        grader = SymbolicGrader()
        return {"can_read": grader.can_read, "equal": grader.equal}
    function = load_function(str(job.function))

    def judge(prompt: str, completion: str, gold: str) -> bool | None:
        result = function(prompt=prompt, completion=completion, gold=gold)
        if result is None or isinstance(result, bool):
            return result
        raise TypeError(f"returned {repr(result)[:80]}; return True, False or None")

    return {"judge": judge}


def main() -> None:
    """Read the descriptor, the search path and the job from the command line."""
    descriptor, job = json.loads(sys.argv[1])
    serve(descriptor, Job(*job))
