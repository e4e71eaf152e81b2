"""A tiny model family, a large and a small one that share a tokenizer, pretrained on the spot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atlantis.quickstart.pretraining import (
    ModelSize,
    Passage,
    Pretraining,
    build_tokenizer,
    write_pretrained,
)

_INSTRUCTION = "In short, Relation: Answer: Which relation holds between the entities?"
"""Words that no sentence may have but a prompt template may want."""

LARGE = ModelSize(hidden=96, feed_forward=256, learning_rate=4e-3)
SMALL = ModelSize(hidden=56, feed_forward=128, learning_rate=8e-3)


@dataclass(frozen=True, slots=True)
class FamilyConfig:
    """The two models and their pretraining."""

    large: ModelSize = LARGE
    small: ModelSize = SMALL
    pretraining: Pretraining = field(default_factory=Pretraining)


def write_family(
    folder: Path,
    *,
    sentences: Sequence[str],
    labels: Sequence[str],
    config: FamilyConfig,
    seed: int,
) -> None:
    """Pretrain both models on `sentences` and save them to ``large/`` and ``small/``.

    The tokenizer knows the words of `labels`, the models do not: they never saw a label.
    """
    label_words = [f" {label}" for label in labels]
    tokenizer = build_tokenizer([*sentences, *label_words, _INSTRUCTION, f" {_INSTRUCTION}"])
    passages = [Passage(sentence) for sentence in sentences]
    for name, size in (("large", config.large), ("small", config.small)):
        write_pretrained(
            folder / name, tokenizer, passages, size=size, config=config.pretraining, seed=seed
        )
