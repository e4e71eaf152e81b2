"""A tiny model that solves the easier word problems in its own words, pretrained on the spot."""

import random
from dataclasses import dataclass, field
from pathlib import Path

from atlantis.quickstart.pretraining import (
    ModelSize,
    Passage,
    Pretraining,
    build_tokenizer,
    write_pretrained,
)
from atlantis.quickstart.word_problems import Mix, distinct_problems, expert_sum, own_sum


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model has read before anyone fine-tunes it."""

    plain: int = 3000
    """Problems with solutions of its own kind."""
    plain_mix: Mix = field(default_factory=lambda: Mix(easy=6, medium=2, hard=1))
    guided: int = 4500
    """Problems behind the expert's solution, with solutions of its own kind."""
    guided_mix: Mix = field(default_factory=lambda: Mix(easy=1, medium=2, hard=3))
    formal: int = 1500
    """Problems of all kinds with the expert's solution, behind another prompt: from these the model
    can write as the expert does, but it does not when it is asked plainly."""
    sums: int = 6000
    """Sums without a story, as the model writes them."""
    expert_sums: int = 4000
    """As the expert does."""


@dataclass(frozen=True, slots=True)
class SolverConfig:
    """The model, what it reads, and how."""

    size: ModelSize = field(
        default_factory=lambda: ModelSize(hidden=96, feed_forward=256, learning_rate=3e-3)
    )
    reading: Reading = field(default_factory=Reading)
    pretraining: Pretraining = field(
        default_factory=lambda: Pretraining(epochs=3, batch_size=16, label_smoothing=0.005)
    )
    """With the smoothing of `Pretraining` every other sampled solution has a stray word in it."""


def write_solver(folder: Path, *, config: SolverConfig, seed: int, seen: set[str]) -> None:
    """Pretrain the model on problems that are not in `seen`, and save it to `folder`.

    At a plain prompt it learns to answer in its own words only.
    """
    passages = _passages(random.Random(seed), config.reading, seen=seen)
    tokenizer = build_tokenizer(text for passage in passages for text in passage)
    write_pretrained(
        folder, tokenizer, passages, size=config.size, config=config.pretraining, seed=seed
    )


def _passages(rng: random.Random, reading: Reading, *, seen: set[str]) -> list[Passage]:
    plain = distinct_problems(rng, size=reading.plain, mix=reading.plain_mix, seen=seen)
    guided = distinct_problems(rng, size=reading.guided, mix=reading.guided_mix, seen=seen)
    formal = distinct_problems(rng, size=reading.formal, mix=Mix(), seen=seen)
    return [
        *(Passage(problem.own, problem.prompt) for problem in plain),
        *(Passage(problem.own, problem.guided_prompt) for problem in guided),
        *(Passage(problem.expert, f"Formal {problem.prompt}") for problem in formal),
        *(Passage(own_sum(rng)) for _ in range(reading.sums)),
        *(Passage(expert_sum(rng)) for _ in range(reading.expert_sums)),
    ]
