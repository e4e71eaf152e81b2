"""What the processes of a launch say in the end, so that one line is printed and not one each."""

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

FOLDER = "ATLANTIS_OUTCOMES"
"""Variable with the folder in which each process leaves its last line."""


class Outcome(NamedTuple):
    """How a process ended."""

    time: float
    code: int
    word: str
    reason: str


def is_launched() -> bool:
    """Whether ``atlantis`` started this process, and speaks for it."""
    return FOLDER in os.environ


def leave(code: int, word: str, reason: str) -> None:
    """Leave the reason of this process's end for the one that started it."""
    path = Path(os.environ[FOLDER]) / f"{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps([time.time(), code, word, reason]))


def end_process(ending: SystemExit) -> NoReturn:
    """End one of several processes, without the interpreter's shutdown.

    In that, threads of torch's process groups now and then abort a process that is done (torch
    2.13: "terminate called without an active exception").
    """
    if "LOCAL_RANK" not in os.environ or not isinstance(ending.code, int | None):
        raise ending
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ending.code or 0)


def first(folder: Path) -> Outcome | None:
    """The reason that came first; None if no process left one."""
    found = [Outcome(*json.loads(path.read_text())) for path in folder.glob("*.json")]
    return min(found, default=None)
