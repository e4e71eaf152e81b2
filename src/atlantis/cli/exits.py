"""Errors and signals -> one line on standard error and an exit code."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from atlantis.cli.output import say
from atlantis.errors import InputError, ResumableError
from atlantis.launch import outcomes

EXIT_RESUMABLE = 1
EXIT_INPUT = 2

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATH_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""What a wrong path gives; any other `OSError` is the machine's, such as a full disk."""


class _StoppedError(BaseException):
    """A signal; no `except Exception` on the way may take it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def exit_codes() -> Generator[None]:
    """0 done, 1 a rerun goes on, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    with _signals_raise():
        try:
            yield
        except InputError as error:
            end("error", error, EXIT_INPUT)
        except ResumableError as error:
            end("stopped", error, EXIT_RESUMABLE)
        except _PATH_ERRORS as error:
            end("error", f"{error.filename}: {error.strerror}; correct the path", EXIT_INPUT)
        except OSError as error:
            end("stopped", error, EXIT_RESUMABLE)
        except _StoppedError as error:
            if outcomes.is_launched():  # who sent the signal says so
                sys.exit(128 + error.signum)
            name = signal.Signals(error.signum).name
            end("stopped", f"{name}; run the same command to go on", 128 + error.signum)


@contextmanager
def _signals_raise() -> Generator[None]:
    previous = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise _StoppedError(signum)


def end(word: str, reason: object, code: int) -> NoReturn:
    """Say why, and exit; of several processes one says it."""
    line = " ".join(str(reason).split())
    if outcomes.is_launched():
        outcomes.leave(code, word, line)
    elif os.environ.get("RANK", "0") == "0":
        say(f"{word}: {line}", style="bold red")
    sys.exit(code)
