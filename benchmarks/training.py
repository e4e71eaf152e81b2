"""What weights cost in training: step time and peak memory, with weights and of stock TRL. CPU.

Everybody trains the same random model of Qwen2's shape on the same rows of ragged lengths, in turns
in one process; a step lasts from the end of the step before, so that batching counts. Times are
medians of the processor's time, which other work on the machine disturbs less than the clock on the
wall, and ratios medians over the rounds. Memory is the most that a process of its own needs on top
of the libraries.

Off CUDA the trainer brings a head that projects the trained positions only; the row "TRL's head"
leaves it out, so that what remains is the cost of the weights. Run it on an idle machine:
``python benchmarks/training.py``.
"""

import argparse
import contextlib
import gc
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

VOCABULARY = 8192
MEMORY_STEPS = 3
NO_POOL = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc gives every freed tensor back at once, so that resident memory is that of live tensors."""


class Contender(NamedTuple):
    """A trainer, and the head that the model gets."""

    weighted: bool
    own_head: bool = False


STOCK = "stock TRL"
CONTENDERS = {
    STOCK: Contender(weighted=False),
    "weights, TRL's head": Contender(weighted=True),
    "weights": Contender(weighted=True, own_head=True),
}


class Clock(TrainerCallback):
    """The processor's time of the steps; with one thread, what they take on an idle machine."""

    def __init__(self) -> None:
        self.marks: list[Any] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.marks.append(time.process_time())

    def seconds(self) -> list[float]:
        """Of every step but the first, which pays for what is made once."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


@dataclass(frozen=True)
class Workload:
    """What is trained on what."""

    make_model: Callable[[], Qwen2ForCausalLM]
    rows: Dataset
    layouts: Mapping[str, Mapping[str, Any]]
    arguments: Mapping[str, Any]
    clock: type[Clock] = Clock


def make_model(*, hidden_size: int = 256) -> Qwen2ForCausalLM:
    """A random model; 3 million parameters besides its embeddings."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return Qwen2ForCausalLM(config)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """The rows are token ids; it only names the end of a turn."""
    end = vocabulary - 1
    inner = Tokenizer(WordLevel({"<unk>": 0, "<eos>": end}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")


def make_rows(num_rows: int, vocabulary: int, *, shortest: int, longest: int) -> Dataset:
    """Random rows: prompt and completion have between so many tokens each."""
    generator = torch.Generator().manual_seed(1)
    rows: list[dict[str, list[int]]] = []
    for _ in range(num_rows):
        prompt, completion = torch.randint(
            shortest, longest + 1, (2,), generator=generator
        ).tolist()
        ids = torch.randint(vocabulary - 1, (prompt + completion,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return Dataset.from_list(rows)


def cpu_workload() -> Workload:
    """Steps of a fraction of a second."""
    return Workload(
        make_model,
        make_rows(128, VOCABULARY, shortest=8, longest=56),
        {
            "padded": {"per_device_train_batch_size": 16},
            "packed": {"per_device_train_batch_size": 8, "packing": True, "max_length": 128},
        },
        {"bf16": False, "use_cpu": True},
    )


def train(workload: Workload, contender: Contender, layout: str, *, num_steps: int) -> list[float]:
    """Seconds of each step but the first."""
    rows, trainer_class, config_class = workload.rows, SFTTrainer, SFTConfig
    if contender.weighted:
        weights = torch.randn(len(rows), generator=torch.Generator().manual_seed(2)).exp()
        rows = rows.add_column("weight", weights.tolist())
        trainer_class, config_class = WeightedSFTTrainer, WeightedSFTConfig
    head: Any = contextlib.nullcontext()
    if not contender.own_head:
        head = mock.patch("atlantis.training.trainers.use_compact_head")
    model = workload.make_model()
    with tempfile.TemporaryDirectory() as folder, head:
        arguments = config_class(
            output_dir=folder,
            max_steps=num_steps,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            activation_checkpointing=False,
            **workload.arguments,
            **workload.layouts[layout],
        )
        trainer = trainer_class(
            model,
            arguments,
            train_dataset=rows,
            processing_class=make_tokenizer(model.config.vocab_size),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        clock = workload.clock()
        trainer.add_callback(clock)
        trainer.train()
    return clock.seconds()


def step_seconds(
    workload: Workload,
    contenders: Mapping[str, Contender],
    layout: str,
    *,
    rounds: int,
    num_steps: int,
) -> dict[str, list[float]]:
    """Median of each round; they take turns, in the other order every second round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            gc.collect()  # models of the round before
            steps = train(workload, contenders[name], layout, num_steps=num_steps)
            seconds[name].append(statistics.median(steps))
    return seconds


def comparison(
    workload: Workload,
    contenders: Mapping[str, Contender],
    peak_bytes: Callable[[str, str], int],
    *,
    rounds: int,
    num_steps: int,
) -> Table:
    """Both measures of all contenders, and as multiples of stock TRL's.

    Args:
        workload: What is trained.
        contenders: Who trains, stock TRL first.
        peak_bytes: Most memory of a layout and a contender, by their names.
        rounds: How often everybody's turn comes.
        num_steps: Steps of a turn.
    """
    table = Table("rows", "trainer", "step (ms)", "x stock", "peak (MB)", "x stock")
    for layout in workload.layouts:
        times = step_seconds(workload, contenders, layout, rounds=rounds, num_steps=num_steps)
        peaks = {name: peak_bytes(layout, name) for name in contenders}
        table.add_section()
        for name in contenders:
            ratios = [own / stock for own, stock in zip(times[name], times[STOCK], strict=True)]
            table.add_row(
                layout,
                name,
                f"{statistics.median(times[name]) * 1e3:.0f}",
                f"{statistics.median(ratios):.3f}",
                f"{peaks[name] / 1e6:.0f}",
                f"{peaks[name] / peaks[STOCK]:.3f}",
            )
    return table


def own_peak(layout: str, name: str) -> int:
    """Most memory of this process in training, on top of the libraries. Linux only."""
    workload = cpu_workload()
    small = replace(workload, make_model=lambda: make_model(hidden_size=8))
    train(small, CONTENDERS[name], layout, num_steps=1)  # imports what is imported on the way
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    train(workload, CONTENDERS[name], layout, num_steps=MEMORY_STEPS)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def be_quiet() -> None:
    """No progress bars, and no advice of the libraries."""
    transformers.utils.logging.set_verbosity(logging.ERROR)
    logging.disable(logging.WARNING)
    disable_progress_bars()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7, help="of a round; the first is not counted")
    parser.add_argument("--processes", type=int, default=3, help="median of so many for memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    be_quiet()
    console = Console(width=100)
    if options.memory_of:
        console.print(own_peak(*options.memory_of))
        return

    def peak_bytes(layout: str, name: str) -> int:
        command = [sys.executable, __file__, "--threads", str(options.threads)]
        command += ["--memory-of", layout, name]
        printed = [
            subprocess.check_output(command, text=True, env=os.environ | NO_POOL)
            for _ in range(options.processes)
        ]
        return statistics.median_low(int(line) for line in printed)

    console.print(
        comparison(
            cpu_workload(),
            CONTENDERS,
            peak_bytes,
            rounds=options.rounds,
            num_steps=options.steps,
        )
    )


if __name__ == "__main__":
    main()
