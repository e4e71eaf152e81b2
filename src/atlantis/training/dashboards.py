"""Losses and metrics on a dashboard while training: TensorBoard, Trackio or Weights & Biases."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from atlantis.errors import ConfigError


def check_installed(report_to: Sequence[str]) -> None:
    """Refuse a dashboard whose package is not there, before anything is loaded.

    Raises:
        ConfigError: Names the package to install.
    """
    for name in report_to:
        if find_spec(name) is None:
            raise ConfigError(f"report_to {name}: not installed here; pip install {name}")


def dashboard_callbacks(report_to: Sequence[str], out: Path) -> Iterator[TrainerCallback]:
    """One callback for each dashboard.

    Args:
        report_to: Their names.
        out: Folder of the training. TensorBoard's files go beside it: what is in it is either
            whole or deleted.
    """
    for name in report_to:
        if name == "tensorboard":
            yield TensorBoardCallback(_writer(logs_beside(out)))
        elif name == "trackio":
            yield TrackioCallback()
        else:
            yield WandbCallback()


def run_name(out: Path) -> str:
    """What a training is called on a dashboard."""
    return out.name.removesuffix(".partial")


def logs_beside(out: Path) -> Path:
    """Folder of TensorBoard's files for the training in ``out``."""
    return out.with_name(f"{run_name(out)}.logs")


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=str(folder))
