"""The processes of one training: the main one decides, reads and writes, the others follow it.

Alone, a process is the main one and talks to nobody.
"""

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from atlantis.launch.configs import Launch

_T = TypeVar("_T")
_HOURS = 12
"""A process may read and digest for long before the others hear of it."""


def join(launch: Launch | None) -> None:
    """Meet the other processes of a launch."""
    if launch is not None:
        device = device_options(launch)
        PartialState(
            cpu=device["use_cpu"], backend=device["ddp_backend"], timeout=timedelta(hours=_HOURS)
        )


def leave() -> None:
    """Part from the other processes: one that ends before takes its threads down by force."""
    if dist.is_initialized():
        highest(0)
        dist.destroy_process_group()


def device_options(launch: Launch | None) -> dict[str, Any]:
    """What `transformers.TrainingArguments` has to be told where the processes have no GPU.

    accelerate takes several processes without one for so many trainings, each of one process.
    """
    if launch is None or torch.accelerator.is_available():
        return {"use_cpu": False, "ddp_backend": None}
    # With use_cpu it would not see DeepSpeed, and without a backend not the other processes.
    return {"use_cpu": launch.wrapper != "deepspeed", "ddp_backend": "gloo"}


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def index() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process decides and writes."""
    return index() == 0


def wait() -> None:
    """Wait until all processes have come here."""
    if count() > 1:
        highest(0)


def highest(value: int) -> int:
    """The highest value of all processes."""
    if count() == 1:
        return value
    found = torch.tensor(value, device=_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def tell(value: Any) -> None:
    """Let the others `hear` something; only the main process does."""
    _broadcast((True, value))


def tell_failure() -> None:
    """Let the others end, who wait for something that will not come."""
    _broadcast((False, None))


def hear() -> Any:
    """What the main process has to say.

    Raises:
        SystemExit: It failed; its own line says why.
    """
    has_worked, value = _broadcast(None)
    if not has_worked:
        sys.exit(1)
    return value


def decided_by_main(work: Callable[[], _T]) -> _T:
    """The result that the main process gets; the others do no work."""
    if not is_main():
        return hear()
    try:
        result = work()
    except BaseException:
        tell_failure()
        raise
    tell(result)
    return result


def main_first(work: Callable[[], _T]) -> _T:
    """The result of work that all do, the main process before the others.

    What is wrong for all is said once.
    """
    if not is_main():
        hear()
        return work()
    try:
        result = work()
    except BaseException:
        tell_failure()
        raise
    tell(None)
    return result


def _broadcast(value: Any) -> Any:
    if count() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0, device=_device())
    return held[0]


def _device() -> Any:
    """Where tensors have to be for the others to get them."""
    return PartialState().device
