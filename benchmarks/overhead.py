"""What weights cost in training, and what scoring all labels at once saves. CPU, one table.

Run it on an idle machine: ``make bench``. Both sides of a ratio are timed in turns in one process;
the table gives medians.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from atlantis.data.tokenization import tokenize
from atlantis.models.choices import score_choices
from atlantis.records import Example
from atlantis.scoring.batching import make_batches
from atlantis.scoring.transformers_scorer import TransformersScorer
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

VOCABULARY, NUM_ROWS, PROMPT, COMPLETION, NUM_LABELS = 8192, 64, 48, 4, 19
ROUNDS = 5


def make_model() -> Qwen2ForCausalLM:
    """A random model of 3 million parameters without its embeddings."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return Qwen2ForCausalLM(config)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word ``w0``, ``w1``, ..."""
    words = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"<eos>": VOCABULARY - 1}
    inner = Tokenizer(WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")


def words(*shape: int) -> list[list[str]]:
    """Random words."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY - 1, shape, generator=generator).tolist()
    return [[f"w{i}" for i in row] for row in ids]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def training() -> tuple[float, float]:
    """Seconds per 4 steps of 16 rows: stock `SFTTrainer`, and ours with weights."""
    ids = torch.randint(0, VOCABULARY, (NUM_ROWS, PROMPT + COMPLETION)).tolist()
    rows = Dataset.from_list(
        [{"input_ids": row, "labels": [-100] * PROMPT + row[PROMPT:]} for row in ids]
    )
    times: dict[str, list[float]] = {"stock": [], "ours": []}
    for _ in range(ROUNDS):
        for name, trainer_class, config_class, data in [
            ("stock", SFTTrainer, SFTConfig, rows),
            ("ours", WeightedSFTTrainer, WeightedSFTConfig, rows.add_column("weight", [0.5] * 64)),
        ]:
            with tempfile.TemporaryDirectory() as folder:
                arguments = config_class(
                    output_dir=folder,
                    per_device_train_batch_size=16,
                    max_steps=4,
                    report_to="none",
                    save_strategy="no",
                    disable_tqdm=True,
                    activation_checkpointing=False,
                    bf16=False,
                    use_cpu=True,
                )
                trainer = trainer_class(
                    make_model(), arguments, train_dataset=data, processing_class=make_tokenizer()
                )
                trainer.remove_callback(transformers.PrinterCallback)
                times[name].append(seconds(trainer.train))
    return statistics.median(times["stock"]), statistics.median(times["ours"])


def labels() -> tuple[float, float]:
    """Seconds for 19 labels after 64 prompts: one row per label, and all at once."""
    model, tokenizer = make_model().eval(), make_tokenizer()
    prompts = [" ".join(row) for row in words(NUM_ROWS, PROMPT)]
    choices = [" " + " ".join(row) for row in words(NUM_LABELS, COMPLETION)]
    pairs = [
        Example(f"{i}-{j}", p, c) for i, p in enumerate(prompts) for j, c in enumerate(choices)
    ]
    scorer = TransformersScorer(model, score_end_of_turn=True)

    def one_by_one() -> None:
        rows = tokenize(pairs, tokenizer, max_length=512)
        for batch in make_batches([row.num_tokens for row in rows], token_budget=4096):
            scorer.score([rows[i] for i in batch])

    def at_once() -> None:
        score_choices(model, tokenizer, prompts, choices)

    times = [(seconds(one_by_one), seconds(at_once)) for _ in range(ROUNDS)]
    slow, fast = zip(*times, strict=True)
    return statistics.median(slow), statistics.median(fast)


def main() -> None:
    """Print the table."""
    transformers.utils.logging.set_verbosity(logging.ERROR)
    disable_progress_bars()
    table = Table("what", "reference (s)", "ours (s)", "ours / reference")
    for title, (reference, ours) in {
        "4 training steps of 16 rows: stock TRL, with weights": training(),
        "19 labels after 64 prompts: a row per label, all at once": labels(),
    }.items():
        table.add_row(title, f"{reference:.2f}", f"{ours:.2f}", f"{ours / reference:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
