"""Seeded label noise: labels in, labels out. The true labels are never changed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from atlantis.errors import DataError
from atlantis.records import base_relation

Confusion = Mapping[str, Mapping[str, float]]
"""For each label, the probability of every label that a flipped row may get instead."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class UniformNoise(_Config):
    """Flipped rows get any other label, each with the same probability."""

    kind: Literal["uniform"] = "uniform"

    rate: float = Field(gt=0.0, le=1.0)
    """Share of rows that are flipped: exactly ``round(rate * rows)`` of them."""

    def apply(
        self, labels: Sequence[str], gold: Sequence[str | None], *, rng: np.random.Generator
    ) -> tuple[str, ...]:
        """The labels after noise, in the same order; ``gold`` is not looked at."""
        others = _others(sorted(set(labels)))
        return _flip(labels, self.rate, rng, lambda label: str(rng.choice(others[label])))


class ConfusableNoise(_Config):
    """Flipped rows get a label that is easily mistaken for theirs."""

    kind: Literal["confusable"] = "confusable"

    rate: float = Field(gt=0.0, le=1.0)
    """Share of rows that are flipped: exactly ``round(rate * rows)`` of them."""

    confusion: dict[str, dict[str, float]] | None = None
    """For each label, the probabilities of the labels it turns into. Without it, half of the
    flips of a directed relation turn its direction round and the rest are uniform."""

    @model_validator(mode="after")
    def _rows_are_probabilities(self) -> Self:
        for label, row in (self.confusion or {}).items():
            if label in row:
                raise ValueError(f"confusion of {label!r} holds {label!r} itself; leave it out")
            if min(row.values(), default=0.0) < 0 or not math.isclose(sum(row.values()), 1.0):
                raise ValueError(f"confusion of {label!r}: write probabilities that sum to 1")
        return self

    def apply(
        self, labels: Sequence[str], gold: Sequence[str | None], *, rng: np.random.Generator
    ) -> tuple[str, ...]:
        """The labels after noise, in the same order; ``gold`` is not looked at.

        Raises:
            DataError: The confusion names no row for a label, or a label that does not occur, or
                there is no confusion and no label has a direction.
        """
        names = sorted(set(labels))
        confusion = self.confusion or direction_confusion(names)
        _refuse_other_names(confusion, names)

        def mistaken(label: str) -> str:
            row = confusion[label]
            return str(rng.choice(list(row), p=np.array(list(row.values())) / sum(row.values())))

        return _flip(labels, self.rate, rng, mistaken)


class MixGoldNoise(_Config):
    """Weak labels are replaced by true ones until a given share of wrong labels is left."""

    kind: Literal["mix_gold"] = "mix_gold"

    target_rate: float = Field(ge=0.0, lt=1.0)
    """Share of rows whose label is wrong afterwards: exactly ``round(target_rate * rows)``."""

    def apply(
        self, labels: Sequence[str], gold: Sequence[str | None], *, rng: np.random.Generator
    ) -> tuple[str, ...]:
        """The labels after mixing, in the same order.

        Replacing a label that is right changes nothing, so only wrong ones are drawn.

        Raises:
            DataError: A true label is missing, or fewer labels are wrong than asked for.
        """
        if None in gold:
            raise DataError(
                f"mix_gold: row {list(gold).index(None)} has no true label; use data that has them"
            )
        pairs = list(zip(labels, gold, strict=True))
        wrong = [row for row, (weak, true) in enumerate(pairs) if weak != true]
        num_wrong = round(self.target_rate * len(labels))
        if len(wrong) < num_wrong:
            raise DataError(
                f"mix_gold: {len(wrong)} of {len(labels)} labels are wrong, which is already "
                f"cleaner than target_rate {self.target_rate}; lower it"
            )
        mended = set(rng.choice(wrong, size=len(wrong) - num_wrong, replace=False).tolist())
        return tuple(str(true) if row in mended else weak for row, (weak, true) in enumerate(pairs))


NoiseConfig = Annotated[UniformNoise | ConfusableNoise | MixGoldNoise, Field(discriminator="kind")]
"""Any of the kinds of noise, told apart by ``kind``."""


def direction_confusion(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mistakes that prefer the same relation in the other direction.

    Half of the probability goes to the reversed label where that is one of ``names``; what is
    left is spread evenly over all other labels. A label without a reverse is mistaken uniformly.

    Raises:
        DataError: No label has its reverse among the names, so this would be uniform noise.
    """
    others = _others(names)
    confusion: dict[str, dict[str, float]] = {}
    for name in names:
        reverse = [other for other in others[name] if base_relation(other) == base_relation(name)]
        rest = [other for other in others[name] if other not in reverse]
        kept = 0.5 if reverse and rest else float(bool(reverse))
        confusion[name] = {other: kept / len(reverse) for other in reverse}
        confusion[name] |= {other: (1.0 - kept) / len(rest) for other in rest}
    if len({base_relation(name) for name in names}) == len(names):
        raise DataError(
            "confusable noise: no label occurs in both directions, so this would be uniform "
            "noise; give `confusion`, or set kind: uniform"
        )
    return confusion


def _others(names: Sequence[str]) -> dict[str, list[str]]:
    """For each label, all the others."""
    if len(names) < 2:
        raise DataError(f"noise: needs two labels or more, found {', '.join(names) or 'none'}")
    return {name: [other for other in names if other != name] for name in names}


def _flip(
    labels: Sequence[str], rate: float, rng: np.random.Generator, mistaken: Callable[[str], str]
) -> tuple[str, ...]:
    num_flips = round(rate * len(labels))
    if num_flips == 0:
        raise DataError(f"noise: rate {rate} of {len(labels)} rows flips none; raise it")
    noisy = list(labels)
    flipped: list[int] = rng.choice(len(labels), size=num_flips, replace=False).tolist()
    for row in sorted(flipped):
        noisy[row] = mistaken(labels[row])
    return tuple(noisy)


def _refuse_other_names(confusion: Confusion, names: Sequence[str]) -> None:
    without_row = sorted(set(names) - set(confusion))
    named = {name for row in confusion.values() for name in row} | set(confusion)
    unknown = sorted(named - set(names))
    if without_row or unknown:
        raise DataError(
            f"confusable noise: confusion lacks {without_row} and names unknown {unknown}; "
            f"the labels are {', '.join(names)}"
        )
