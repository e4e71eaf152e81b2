"""Worker processes with a deadline for each task: what hangs is killed, and costs only that.

Order of results is the order of tasks, whatever the number of workers. One thread may use a pool.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

from atlantis.errors import ConfigError, ResumableError
from atlantis.verification.worker import Job, Reply, Task

_START_SECONDS = 120.0
"""A worker that is not up by then never will be (it takes half a second, or what a user's module
takes to import)."""
_MOST_FAILED_STARTS = 3
_DYING_SECONDS = 1.0
"""From when a process closes its connection to when its exit code is known."""
_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from atlantis.verification.worker import main; main()"
)


class Outcome(NamedTuple):
    """What became of a task."""

    status: str
    """``ok``, ``timeout`` or ``error``."""
    value: Any
    """What the task returned, if it is ``ok``."""
    detail: str | None
    """What went wrong, otherwise."""


class _Worker:
    """One process and this end of its connection."""

    def __init__(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A group of its own: Ctrl-C reaches us, and we end it; what it starts ends with it.
            # Hash seed: sympy's order of terms must not change from worker to worker.
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _BEGIN),
                    *(json.dumps([*sys.path, os.getcwd()]), json.dumps([theirs.fileno(), job])),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if job.kind == "function" else subprocess.DEVNULL,
                env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
                process_group=0,
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        self.task: int | None = None
        """Place of the task that it works on."""
        self.ready = False
        self.until = time.monotonic() + _START_SECONDS

    def give(self, place: int, task: Task, deadline_seconds: float) -> None:
        self.connection.send(task)
        self.task, self.until = place, time.monotonic() + deadline_seconds

    def receive(self) -> Reply | None:
        """What it sends; None if it is dead."""
        try:
            return Reply(*self.connection.recv())
        except (EOFError, OSError):
            return None

    def end(self, *, patience_seconds: float = 0.0) -> str:
        """Kill it and what it started; say how it had ended, if it did so by itself."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_seconds)
        code = self.process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        if code is None:
            return "the worker closed its connection"
        if code < 0:
            return f"the worker was killed by {signal.Signals(-code).name}"
        return f"the worker ended with exit code {code}"


class WorkerPool:
    """A few worker processes that do one job; enter it to start, leave it to end them."""

    def __init__(self, job: Job, *, num_workers: int) -> None:
        self._job = job
        self._num_workers = num_workers
        self._workers: list[_Worker] = []
        self._num_failed_starts = 0

    def __enter__(self) -> Self:
        """Start one worker and wait for it, so that a job which cannot start fails here.

        Raises:
            ConfigError: It cannot; the message says why.
        """
        worker = _Worker(self._job)
        self._workers.append(worker)
        try:
            reply = worker.receive() if worker.connection.poll(_START_SECONDS) else None
            if reply is None:
                reply = Reply(False, worker.end(patience_seconds=_DYING_SECONDS))
            if not reply.ok:
                raise ConfigError(
                    f"{self._job.function or 'math_verify'}: {reply.value}; correct that"
                )
        except BaseException:
            self.close()
            raise
        worker.ready = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        while self._workers:
            self._workers.pop().end()

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Do all tasks.

        A task that takes longer than the job's deadline, or that ends its worker, gets an outcome
        that says so; its worker is replaced and the others go on.

        Raises:
            ResumableError: Workers cannot be started any more.
        """
        outcomes: list[Outcome | None] = [None] * len(tasks)
        waiting = deque(range(len(tasks)))
        try:
            while waiting or any(worker.task is not None for worker in self._workers):
                self._hire(len(waiting))
                self._give_out(tasks, waiting)
                self._collect(outcomes)
        except BaseException:  # Ctrl-C included: no answer of this call may reach the next one
            self.close()
            raise
        return [outcome for outcome in outcomes if outcome is not None]

    def _hire(self, num_waiting: int) -> None:
        busy = sum(worker.task is not None for worker in self._workers)
        wanted = min(self._num_workers, busy + num_waiting)
        while len(self._workers) < wanted:
            self._workers.append(_Worker(self._job))

    def _give_out(self, tasks: Sequence[Task], waiting: deque[int]) -> None:
        for worker in list(self._workers):
            if worker.ready and worker.task is None and waiting:
                place = waiting.popleft()
                try:
                    worker.give(place, tasks[place], self._job.deadline_seconds)
                except OSError:  # died while it was idle, which is no fault of this task
                    self._failed_start(worker.end(patience_seconds=_DYING_SECONDS))
                    self._workers.remove(worker)
                    waiting.appendleft(place)

    def _collect(self, outcomes: list[Outcome | None]) -> None:
        active = [w for w in self._workers if w.task is not None or not w.ready]
        if not active:
            return
        patience = max(0.0, min(worker.until for worker in active) - time.monotonic())
        arrived = set(map(id, wait([w.connection for w in active], timeout=patience)))
        for worker in active:
            if id(worker.connection) in arrived:
                self._take(worker, outcomes)
            elif time.monotonic() >= worker.until:
                self._give_up(worker, outcomes)

    def _take(self, worker: _Worker, outcomes: list[Outcome | None]) -> None:
        reply, place = worker.receive(), worker.task
        if reply is None:
            self._workers.remove(worker)
            ending = worker.end(patience_seconds=_DYING_SECONDS)
            if place is None:
                self._failed_start(ending)
            else:
                outcomes[place] = Outcome("error", None, ending)
        elif place is None:
            if not reply.ok:
                self._failed_start(str(reply.value))
            worker.ready, self._num_failed_starts = True, 0
        else:
            worker.task = None
            outcomes[place] = (
                Outcome("ok", reply.value, None)
                if reply.ok
                else Outcome("error", None, str(reply.value))
            )
            if reply.is_last:
                self._workers.remove(worker)
                worker.end()

    def _give_up(self, worker: _Worker, outcomes: list[Outcome | None]) -> None:
        self._workers.remove(worker)
        place = worker.task
        worker.end()
        if place is None:
            self._failed_start(f"not ready after {_START_SECONDS:g} s")
        else:
            detail = f"took longer than {self._job.deadline_seconds:g} s"
            outcomes[place] = Outcome("timeout", None, detail)

    def _failed_start(self, reason: str) -> None:
        self._num_failed_starts += 1
        if self._num_failed_starts >= _MOST_FAILED_STARTS:
            raise ResumableError(
                f"workers for {self._job.function or self._job.kind} no longer start ({reason}); "
                "is there memory left? Run the same command again"
            )
