"""Work in a process of its own, to be killed; forking spares twenty imports of torch."""

import faulthandler
import logging
import os
import signal
import sys
from dataclasses import dataclass

import pytest
from tqdm.std import TqdmDefaultWriteLock, tqdm

# A lock for all processes: a child that is killed while it draws a bar would leave it taken, and
# everyone else would wait for it without end. Nor may a thread hold a lock while we fork.
TqdmDefaultWriteLock.mp_lock = None
tqdm.monitor_interval = 0

HANGS_AFTER = 300
"""Seconds after which a child writes where it stands into its log, and ends."""


@dataclass
class Child:
    """A process that does one piece of work."""

    number: int

    def kill(self):
        os.kill(self.number, signal.SIGKILL)

    def wait(self):
        """Return its exit status: 1 where the work raised, -9 where it was killed."""
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])


def start(work, log):
    """Start a piece of work; what it writes to standard error is appended to ``log``."""
    number = os.fork()
    if number:
        return Child(number)
    try:
        logging.root.handlers.clear()  # pytest's: lines of the log are to come out
        sys.stderr = log.open("a", buffering=1)
        os.dup2(sys.stderr.fileno(), 2)
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, file=sys.stderr)
        work()
        os._exit(0)
    except SystemExit as error:
        os._exit(error.code or 0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)  # noqa: T201
        os._exit(1)


@pytest.fixture(scope="session")
def fork():
    return start
