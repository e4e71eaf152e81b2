"""What the weights say about single examples: wrong labels found, and the extreme rows."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atlantis.report.artifacts import FloatArray, ScoreTable, TrainTable, WeightTable
from atlantis.report.words import arm_title, estimate, fixed, significant

NUM_REPLICATES = 1000
_BATCH = 100
_MOST_CHARACTERS = 600
_MARKED = re.compile(r"<(e[12])>(.*?)</\1>", re.DOTALL)
MEASURES = ("auroc", "average_precision", "precision_at_wrong")


class Detection(NamedTuple):
    """How well a ranking finds the wrong labels; one value per row of ``counts``."""

    auroc: FloatArray
    average_precision: FloatArray
    precision_at_wrong: FloatArray


@dataclass(frozen=True, slots=True)
class Ranking:
    """Examples from the most to the least suspicious, with their ties.

    Sorted once, then measured under any number of resamples: a resample is a count per example.
    """

    order: npt.NDArray[np.intp]
    group_ends: npt.NDArray[np.intp]
    """The last position of each group of equal suspicion."""
    is_wrong: npt.NDArray[np.bool_]
    """In sorted order."""

    @classmethod
    def of(cls, suspicion: FloatArray, is_wrong: npt.NDArray[np.bool_]) -> "Ranking":
        """Sort by falling suspicion."""
        order = np.argsort(-suspicion, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(suspicion[order]) != 0, True))
        return cls(order=order, group_ends=ends, is_wrong=is_wrong[order])

    def measure(self, counts: npt.NDArray[np.int64]) -> Detection:
        """AUROC, average precision, and precision among as many rows as labels are wrong.

        ``auroc`` is the probability that a wrong label is more suspicious than a right one, a tie
        counting half; ``average_precision`` the precision at each group of ties, weighted by the
        wrong labels that it adds (scikit-learn's definition); for the precision, a group of ties
        that the limit cuts counts in proportion. Each row of ``counts`` needs both kinds of label.

        Args:
            counts: How often each example occurs, ``[replicate, example]``.
        """
        counts = counts[:, self.order]
        wrong = self._by_group(np.where(self.is_wrong, counts, 0))
        selected = self._by_group(counts)
        new_wrong = np.diff(wrong, axis=1, prepend=0)
        new_selected = np.diff(selected, axis=1, prepend=0)
        num_wrong, num_all = wrong[:, -1], selected[:, -1]
        above = wrong - new_wrong / 2
        auroc = (above * (new_selected - new_wrong)).sum(1) / (num_wrong * (num_all - num_wrong))
        precision = wrong / np.maximum(selected, 1)  # nothing selected yet: its new_wrong is zero
        return Detection(
            auroc=auroc,
            average_precision=(new_wrong * precision).sum(1) / num_wrong,
            precision_at_wrong=_precision_at(num_wrong, wrong=wrong, selected=selected),
        )

    def _by_group(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.cumsum(counts, axis=1)[:, self.group_ends]


def _precision_at(
    limit: npt.NDArray[np.int64], *, wrong: npt.NDArray[np.int64], selected: npt.NDArray[np.int64]
) -> FloatArray:
    """The expected share of wrong labels among the first ``limit`` rows, ties in random order."""
    rows = np.arange(len(limit))
    group = (selected < limit[:, None]).sum(axis=1)
    before = np.maximum(group - 1, 0)
    wrong_before = np.where(group > 0, wrong[rows, before], 0)
    selected_before = np.where(group > 0, selected[rows, before], 0)
    share = (limit - selected_before) / (selected[rows, group] - selected_before)
    return (wrong_before + share * (wrong[rows, group] - wrong_before)) / limit


def suspicions(
    weights: Mapping[str, Mapping[int, WeightTable]],
    scores: Mapping[str, Mapping[int, ScoreTable]],
) -> dict[str, dict[int, FloatArray]]:
    """What ranks examples by how wrong their labels look: title -> seed -> value per example."""
    found: dict[str, dict[int, FloatArray]] = {}
    for arm, tables in weights.items():
        found[f"weight: {arm_title(arm)}"] = {seed: -t.weights for seed, t in tables.items()}
    for role, symbol in (("large", "L"), ("reference", "r")):
        if role in scores:
            tables = scores[role]
            sums = {seed: -table.sequence_logprobs for seed, table in tables.items()}
            means = {seed: sums[seed] / table.num_tokens for seed, table in tables.items()}
            found |= {f"−log p({symbol})": sums, f"−log p({symbol}) per token": means}
    if "reference" in scores and "small" in scores:
        small = scores["small"]
        found["−(log p(r) − log p(S))"] = {
            seed: small[seed].sequence_logprobs - reference.sequence_logprobs
            for seed, reference in scores["reference"].items()
            if seed in small
        }
    return {title: by_seed for title, by_seed in found.items() if by_seed}


def detection_section(
    train: TrainTable, ranked_by: Mapping[str, Mapping[int, FloatArray]], *, level: float
) -> dict[str, Any] | None:
    """How well each ranking finds the wrong labels, or None where no gold label is known.

    All rankings are compared on the same rows: gold label known, and a number from every one of
    them in every seed. The interval resamples examples (wrong and right labels separately, the
    same draws for every ranking and seed) around the mean over seeds.
    """
    known = np.array([gold is not None for gold in train.gold_labels], dtype=bool)
    if not known.any() or not ranked_by:
        return None
    values = [array for by_seed in ranked_by.values() for array in by_seed.values()]
    usable = known & ~np.isnan(np.stack(values)).any(axis=0)
    is_wrong = np.array(
        [a != b for a, b in zip(train.labels, train.gold_labels, strict=True)], dtype=bool
    )[usable]
    n, num_wrong = int(usable.sum()), int(is_wrong.sum())
    section: dict[str, Any] = {
        "num_known": int(known.sum()),
        "n": n,
        "num_wrong": num_wrong,
        "num_replicates": NUM_REPLICATES,
        "level": level,
        "rows": [],
    }
    if 0 < num_wrong < n:
        counts = [*_resamples(is_wrong)]
        section["rows"] = [
            _detection_row(
                title,
                [array[usable] for array in by_seed.values()],
                is_wrong,
                counts=counts,
                level=level,
            )
            for title, by_seed in ranked_by.items()
        ]
        section["rows"].append(_random_row(num_wrong / n))
    return section


def _resamples(is_wrong: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """Counts per example, in batches; the first row of the first batch is the sample itself."""
    rng = np.random.default_rng(0)
    batches = [np.ones((1, is_wrong.size), dtype=np.int64)]
    for _ in range(NUM_REPLICATES // _BATCH):
        batch = np.zeros((_BATCH, is_wrong.size), dtype=np.int64)
        for kind in (is_wrong, ~is_wrong):
            size = int(kind.sum())
            batch[:, kind] = rng.multinomial(size, np.full(size, 1 / size), size=_BATCH)
        batches.append(batch)
    return batches


def _detection_row(
    title: str,
    by_seed: Sequence[FloatArray],
    is_wrong: npt.NDArray[np.bool_],
    *,
    counts: Sequence[npt.NDArray[np.int64]],
    level: float,
) -> dict[str, Any]:
    rankings = [Ranking.of(suspicion, is_wrong) for suspicion in by_seed]
    # [seed, measure, replicate]; replicate 0 is the sample itself
    values = np.array([np.hstack([ranking.measure(c) for c in counts]) for ranking in rankings])
    means = values.mean(axis=0)
    tails = ((1 - level) / 2, (1 + level) / 2)
    row: dict[str, Any] = {"title": title}
    for place, measure in enumerate(MEASURES):
        low, high = (float(q) for q in np.quantile(means[place, 1:], tails))
        mean = float(means[place, 0])
        row[measure] = {
            "mean": mean,
            "low": low,
            "high": high,
            "n": int(is_wrong.size),
            "per_seed": [float(value) for value in values[:, place, 0]],
            "shown": estimate(mean, low, high),
        }
    return row


def _random_row(share_wrong: float) -> dict[str, Any]:
    """What a random order scores on average: no interval, this is arithmetic."""
    expected = dict(zip(MEASURES, (0.5, share_wrong, share_wrong), strict=True))
    exact = {m: {"mean": value, "shown": fixed(value, 2)} for m, value in expected.items()}
    return {"title": "random order (expected)", **exact}


def extreme_examples(
    train: TrainTable, tables: Mapping[int, WeightTable], *, num_examples: int = 10
) -> dict[str, list[dict[str, Any]]]:
    """The examples of lowest and of highest weight, averaged over seeds; ties go by id.

    Only rows that have a weight in every seed take part.
    """
    weights = np.stack([table.weights for table in tables.values()]).mean(axis=0)
    rows = [int(row) for row in np.flatnonzero(~np.isnan(weights))]

    def shown(key: Callable[[int], tuple[float, str]]) -> list[dict[str, Any]]:
        return [
            _example(train, row, weight=float(weights[row]))
            for row in sorted(rows, key=key)[:num_examples]
        ]

    return {
        "lowest": shown(lambda row: (float(weights[row]), train.example_ids[row])),
        "highest": shown(lambda row: (-float(weights[row]), train.example_ids[row])),
    }


def _example(train: TrainTable, row: int, *, weight: float) -> dict[str, Any]:
    label, gold = train.labels[row], train.gold_labels[row]
    return {
        "example_id": train.example_ids[row],
        "weight": weight,
        "shown": significant(weight),
        "label": label,
        "gold_label": gold,
        "is_wrong": None if gold is None else label != gold,
        "segments": segments(train.texts[row]),
    }


def segments(text: str) -> list[dict[str, str | None]]:
    """Text cut at its entity markers, for a page that highlights ``e1`` and ``e2``.

    Unbalanced markers stay as they are; very long text ends in an ellipsis.
    """
    if len(text) > _MOST_CHARACTERS:
        text = text[:_MOST_CHARACTERS].rstrip() + "…"
    parts: list[dict[str, str | None]] = []
    end = 0
    for match in _MARKED.finditer(text):
        parts.append({"text": text[end : match.start()], "entity": None})
        parts.append({"text": match[2], "entity": match[1]})
        end = match.end()
    parts.append({"text": text[end:], "entity": None})
    return [part for part in parts if part["text"]]
