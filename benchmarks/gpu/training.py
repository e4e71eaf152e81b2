"""What weights cost in training on a GPU: a model of Qwen2-1.5B's shape, random, in bfloat16.

As ``benchmarks/training.py``, by CUDA's own clock and count of memory. From the root of the
repository: ``python -m benchmarks.gpu.training``.
"""

import argparse
import gc
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu.scoring import make_model
from benchmarks.training import (
    CONTENDERS,
    MEMORY_STEPS,
    Clock,
    Workload,
    be_quiet,
    comparison,
    make_rows,
    train,
)

VOCABULARY = 151_936  # Qwen2's
ON_GPU = {name: contender for name, contender in CONTENDERS.items() if not contender.own_head}


class CudaClock(Clock):
    """Time on the device, between the ends of steps."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Put an event into the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """Of every step but the first."""
        torch.cuda.synchronize()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def gpu_workload(batch: int) -> Workload:
    """Rows of 128 to 1,024 tokens."""
    return Workload(
        lambda: make_model().train(),
        make_rows(16 * batch, VOCABULARY, shortest=64, longest=512),
        {
            "padded": {"per_device_train_batch_size": batch, "max_length": 1024},
            "packed": {
                "per_device_train_batch_size": max(1, batch // 4),
                "packing": True,
                "max_length": 2048,
            },
        },
        {"bf16": True},
        CudaClock,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="of a round; the first is not counted")
    parser.add_argument(
        "--batch", type=int, default=8, help="rows; a quarter where they are packed"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu/training.py needs an NVIDIA GPU; torch sees none here")
    be_quiet()
    workload = gpu_workload(options.batch)

    def peak_bytes(layout: str, name: str) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        train(workload, ON_GPU[name], layout, num_steps=MEMORY_STEPS)
        return torch.cuda.max_memory_allocated()

    table = comparison(workload, ON_GPU, peak_bytes, rounds=options.rounds, num_steps=options.steps)
    table.title = torch.cuda.get_device_name()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
