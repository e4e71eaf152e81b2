"""What scoring all labels of a prompt in one pass saves over a row per label. CPU, one table.

19 labels after 64 prompts under one random model, in turns in one process; medians. Run it on an
idle machine: ``python benchmarks/choices.py``.
"""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from atlantis.data.tokenization import tokenize
from atlantis.models.choices import score_choices
from atlantis.records import Example
from atlantis.scoring.batching import make_batches
from atlantis.scoring.transformers_scorer import TransformersScorer

VOCABULARY, NUM_PROMPTS, PROMPT, NUM_LABELS, LABEL = 8192, 64, 48, 19, 4
ROUNDS = 5


def make_model() -> Qwen2ForCausalLM:
    """A random model of 3 million parameters besides its embeddings."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return Qwen2ForCausalLM(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word ``w0``, ``w1``, ..."""
    words = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"<eos>": VOCABULARY - 1}
    inner = Tokenizer(WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")


def texts(num_texts: int, num_words: int) -> list[str]:
    """Random words, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY - 1, (num_texts, num_words), generator=generator).tolist()
    return [" ".join(f"w{i}" for i in row) for row in ids]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    model, tokenizer = make_model(), make_tokenizer()
    prompts = texts(NUM_PROMPTS, PROMPT)
    choices = [f" {text}" for text in texts(NUM_LABELS, LABEL)]
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
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    table = Table("19 labels after 64 prompts", "seconds", "x")
    table.add_row("a row per label", f"{slow:.2f}", "1.00")
    table.add_row("all labels in one pass", f"{fast:.2f}", f"{fast / slow:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
