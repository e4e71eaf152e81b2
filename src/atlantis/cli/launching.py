"""A command that runs itself in several processes, and what these share."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atlantis.cli.exits import end
from atlantis.cli.once import make_once
from atlantis.errors import ResumableError
from atlantis.launch import outcomes
from atlantis.launch.configs import ASKED, find_config, read_config

_QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # DeepSpeed calls what torch 2.13 has renamed, at every layer of every step.
    "PYTHONWARNINGS": "ignore:`torch.distributed:FutureWarning",
}
"""Variables of the processes, unless they have others."""


def launch(config: str, num_processes: int | None, arguments: Sequence[str]) -> None:
    """Run ``atlantis`` with these arguments under ``accelerate launch``, and end as it does.

    Args:
        config: Name of a shipped configuration, or a file.
        num_processes: In place of the configuration's.
        arguments: Of the command line.

    Raises:
        ConfigError: The configuration cannot be used.
        ResumableError: A process was killed or has failed in a way that it says by itself.
    """
    path = find_config(config)
    asked = read_config(path, num_processes)
    command = [sys.executable, "-m", "atlantis.launch", "--config_file", str(path)]
    command += ["--num_processes", str(asked.num_processes), "-m", "atlantis.cli", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        told = {ASKED: json.dumps(asked.settings), outcomes.FOLDER: folder}
        # Ctrl-C goes to all processes of a terminal's group; from here it comes once.
        process = subprocess.Popen(command, env=_QUIET | os.environ | told, start_new_session=True)
        code = _wait(process)
        outcome = outcomes.first(Path(folder))
    if outcome is not None:
        end(outcome.word, outcome.reason, outcome.code)
    if code != 0:
        raise ResumableError(
            f"a process of {asked} ended with exit code {code}; run the same command to go on"
        )


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """Pass SIGINT and SIGTERM on; they take effect here when the process has ended."""
    came: list[int] = []

    def pass_on(signum: int, _: Any) -> None:
        came.append(signum)
        process.send_signal(signum)

    previous = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
    return code


def make_once_together(
    out: Path, fingerprint: Mapping[str, Any], work: Callable[[Path], None]
) -> bool:
    """`make_once` in the main process, with all processes taking part in a resumable ``work``.

    Returns:
        Whether anything had to be done.
    """
    from atlantis.training import ranks

    if not ranks.is_main():
        folder: Path | None = ranks.hear()
        if folder is not None:
            work(folder)
        return folder is not None
    has_begun = False

    def begin(folder: Path) -> None:
        nonlocal has_begun
        has_begun = True
        ranks.tell(folder)
        work(folder)

    try:
        made = make_once(out, fingerprint, begin, resumable=True)
    except BaseException:
        if not has_begun:
            ranks.tell_failure()
        raise
    if not made:
        ranks.tell(None)
    return made
