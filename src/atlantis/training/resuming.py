"""What a Trainer needs so that going on from a checkpoint gives the bytes of a run without a stop.

The Trainer saves the model, optimizer, schedule, random numbers and its log. It forgets the loss
that was not logged yet, TRL's sums of metrics, and the random numbers that the epoch's order of
rows was drawn from: resumed in a later epoch, `LengthGroupedSampler` gives another order.
"""

import math
import shutil
import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from atlantis.disk import read_json, write_json
from atlantis.errors import ResumableError
from atlantis.training import checkpoints, ranks


@dataclass
class Interruption:
    """A signal that waits until the training has come to a good place."""

    signum: int | None = None


@contextmanager
def signals_wait() -> Generator[Interruption]:
    """Note SIGINT and SIGTERM, and raise them again at the end; a second one does not wait.

    Only the main thread can do so; in another one nothing changes.
    """
    noted, previous = Interruption(), _handlers()

    def note(signum: int, frame: FrameType | None) -> None:
        noted.signum = signum
        _install(previous)

    _install(dict.fromkeys(previous, note))
    try:
        yield noted
    finally:
        _install(previous)
    if noted.signum is not None:
        signal.raise_signal(noted.signum)


def _handlers() -> dict[int, Any]:
    """What the signals do now; one that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}


def _install(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def saving(what: str, folder: Path | None = None) -> Generator[None]:
    """Turn the ways in which the libraries say that the disk is full into one; drop ``folder``.

    Raises:
        ResumableError: Something could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the space
        reason = str(error).partition("\n")[0]
        raise ResumableError(
            f"{what} could not be saved ({reason}); make room on the disk and run the same "
            "command to go on"
        ) from error


class Checkpointing(Trainer):
    """Mixed in before a Trainer whose ``output_dir`` is the staging folder of its checkpoints."""

    keeper: "CheckpointCallback"

    def keep(self, keeper: "CheckpointCallback") -> None:
        """Start to save checkpoints."""
        self.keeper = keeper
        self.add_callback(keeper)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        progress = self.keeper.progress()
        written = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with saving(f"{self.keeper.out}: {written.name}", written):
            Trainer._save_checkpoint(self, model, trial)  # TRL's would write a model card, too
            write_json(written / _progress_file(), progress)
            ranks.wait()
            ranks.decided_by_main(lambda: self._seal(written))

    def _seal(self, written: Path) -> None:
        (written / "training_args.bin").unlink()  # a pickle, which nobody should read
        checkpoints.seal(written, self.keeper.out, self.keeper.fingerprint)


def _progress_file() -> str:
    """Each process has a loss of its own."""
    return "progress.json" if ranks.count() == 1 else f"progress_{ranks.index()}.json"


class CheckpointCallback(TrainerCallback):
    """Says when a checkpoint is due, and keeps what the Trainer would forget.

    Args:
        trainer: Whom it is for.
        out: Folder of the training.
        fingerprint: All that the training depends on, JSON.
        every: Steps between checkpoints; None for none.
        interruption: A signal that stops the training.
        resumed: The checkpoint that it goes on from.
    """

    def __init__(
        self,
        trainer: Any,
        out: Path,
        *,
        fingerprint: Mapping[str, Any],
        every: int | None,
        interruption: Interruption,
        resumed: Path | None,
    ) -> None:
        self.out = out
        self.fingerprint = fingerprint
        self._trainer = trainer
        self._every = every
        self._interruption = interruption
        self._resumed = None if resumed is None else read_json(resumed / _progress_file())
        self._order = torch.get_rng_state()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._resumed is None:
            return
        trainer = self._trainer
        trainer._tr_loss += self._resumed["unlogged_loss"]
        trainer._globalstep_last_logged = self._resumed["last_logged_step"]
        trainer._total_train_tokens = self._resumed["num_tokens"]
        trainer._metrics["train"].update(self._resumed["metrics"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._resumed is not None:
            order = bytearray.fromhex(self._resumed["order"])
            torch.set_rng_state(torch.frombuffer(order, dtype=torch.uint8))
            self._resumed = None
        # Dropout draws other random numbers in each process, and all have to draw the same order.
        self._order = ranks.decided_by_main(torch.get_rng_state)
        torch.set_rng_state(self._order)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            self._refuse_loss()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            return  # the result follows at once, and the Trainer would go a step beyond the last
        stops = self._agree_to_stop()
        if self._every is not None:
            control.should_save = stops or state.global_step % self._every == 0
        if stops:
            control.should_training_stop = True

    def _agree_to_stop(self) -> bool:
        """Whether a signal came to any process; all then stop after the same step."""
        signum = ranks.highest(self._interruption.signum or 0)
        if signum:
            self._interruption.signum = signum
        return signum != 0

    def progress(self) -> dict[str, Any]:
        """What the Trainer does not save, JSON."""
        trainer = self._trainer
        loss = trainer._tr_loss.item()
        if not math.isfinite(loss):
            self._refuse_loss()
        # After the last step of an epoch the next order is drawn from the numbers as they are now.
        order = torch.get_rng_state() if trainer.state.epoch % 1 == 0 else self._order
        return {
            "unlogged_loss": loss,
            "last_logged_step": trainer._globalstep_last_logged,
            "num_tokens": trainer._total_train_tokens,
            "metrics": dict(trainer._metrics["train"]),
            "order": order.numpy().tobytes().hex(),
        }

    def _refuse_loss(self) -> None:
        checkpoints.remove(self.out)  # another learning rate has to begin anew
        raise ResumableError(f"{self.out}: the loss is not finite; lower training.learning_rate")
