"""Metrics of relation classification, as vectorised functions of a confusion array.

A bootstrap has thousands of confusion arrays, so every metric takes leading batch axes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlantis.errors import DataError
from atlantis.records import Example, LabelSet, RelationExample, base_relation

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


def label_codes(
    gold: Sequence[str], predicted: Sequence[str | None], labels: LabelSet
) -> NDArray[np.intp]:
    """One number per item for its pair of true and predicted label: row-major in `confusion`.

    An answer that is none of the labels, ``None`` or other text, has the last column's code.

    Raises:
        DataError: The lengths differ, or a true label is not in the label set.
    """
    if len(gold) != len(predicted):
        raise DataError(f"{len(gold)} true labels but {len(predicted)} answers; give one for each")
    column = {name: index for index, name in enumerate(labels.names)}
    if unknown := sorted(set(gold) - set(column)):
        raise DataError(f"true label {unknown[0]!r} is none of {', '.join(labels.names)}")
    skipped = len(column)
    codes = [
        column[true] * (skipped + 1) + (skipped if answer is None else column.get(answer, skipped))
        for true, answer in zip(gold, predicted, strict=True)
    ]
    return np.array(codes, dtype=np.intp)


def confusion(gold: Sequence[str], predicted: Sequence[str | None], labels: LabelSet) -> Counts:
    """How often each true label (row) got each answer (column).

    The last column counts answers that are no label: no answer, or text that spells none.

    Returns:
        An array of ``[num_labels, num_labels + 1]``, in the order of ``labels.names``.

    Raises:
        DataError: The lengths differ, or a true label is not in the label set.
    """
    num_labels = len(labels.names)
    codes = label_codes(gold, predicted, labels)
    counts = np.bincount(codes, minlength=num_labels * (num_labels + 1))
    return counts.reshape(num_labels, num_labels + 1)


def headline_metric(labels: LabelSet) -> str:
    """The metric that a report leads with: the first one of `relation_metrics`."""
    num_positive = len(labels.names) - (labels.negative is not None)
    return "official_f1" if _is_official(labels) else f"macro{num_positive}"


def relation_metrics(confusion: Counts, labels: LabelSet) -> dict[str, Shares]:
    r"""All metrics of a label set, the headline first; each is a share between 0 and 1.

    With ``K`` labels of ``B`` relations (directions merged), the negative label included:

    * ``official_f1`` (directed, with a negative): the official score of SemEval-2010 Task 8,
      scorer 1.2. For each relation, a hit has the right direction too, precision divides by the
      answers of that relation in either direction, recall by its items in the key; the F1 of all
      relations but the negative are averaged.
    * ``macro{K-1}`` and ``macro{K}``: macro-F1 over the labels without and with the negative.
    * ``macro{B-1}_nodir`` and ``macro{B}_nodir`` (directed): the same after merging directions.
    * ``accuracy``: the share of answers that are right.

    Without a negative there are ``macro{K}``, ``macro{B}_nodir`` and ``accuracy`` only. Every
    macro average runs over the labels that occur in the key, as in the official scorer (in
    scikit-learn, ``labels=sorted(set(gold))``), and is 0 if none does. An answer that is no label
    is a miss of its true label and a false alarm of none; accuracy counts it as wrong.

    Args:
        confusion: Counts of ``[..., num_labels, num_labels + 1]``, as `confusion` returns them.
        labels: The labels in the order of the rows and columns.

    Raises:
        DataError: The last two axes do not fit the labels.
    """
    num_labels = len(labels.names)
    if confusion.shape[-2:] != (num_labels, num_labels + 1):
        raise DataError(
            f"confusion of shape {confusion.shape} does not fit {num_labels} labels; its last "
            f"axes must be {num_labels} and {num_labels + 1}"
        )
    tallies = _tallies(confusion)
    metrics = _macros(tallies, labels.names, labels.negative, "")
    if _is_directed(labels):
        merge = _Merge.of(labels)
        if labels.negative is not None:
            official = _macro(_merged_hits(tallies, merge), merge.names, labels.negative)
            metrics = {"official_f1": official} | metrics
        merged = _tallies(_merge_directions(confusion, merge))
        metrics |= _macros(merged, merge.names, labels.negative, "_nodir")
    return metrics | {"accuracy": _ratio(tallies.hits.sum(-1), confusion.sum((-1, -2)))}


class _Tallies(NamedTuple):
    """Counts of ``[..., class]``."""

    hits: Counts
    answered: Counts
    in_key: Counts


class _Merge(NamedTuple):
    """How labels become relations without direction."""

    names: tuple[str, ...]
    indicator: Counts
    """1 where a label (row) is a relation (column)."""

    @classmethod
    def of(cls, labels: LabelSet) -> "_Merge":
        bases = [base_relation(name) for name in labels.names]
        names = tuple(sorted(set(bases)))
        indicator = np.array([[base == name for name in names] for base in bases], dtype=np.int64)
        return cls(names, indicator)


def _is_directed(labels: LabelSet) -> bool:
    return any(base_relation(name) != name for name in labels.names)


def _is_official(labels: LabelSet) -> bool:
    return _is_directed(labels) and labels.negative is not None


def _tallies(confusion: Counts) -> _Tallies:
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _Tallies(hits, confusion[..., :-1].sum(-2), confusion.sum(-1))


def _merged_hits(tallies: _Tallies, merge: _Merge) -> _Tallies:
    """Directions merged in the denominators only: a hit still needs the right direction."""
    return _Tallies(*(counts @ merge.indicator for counts in tallies))


def _merge_directions(confusion: Counts, merge: _Merge) -> Counts:
    answers = confusion[..., :-1] @ merge.indicator
    with_skipped = np.concatenate([answers, confusion[..., -1:]], axis=-1)
    return merge.indicator.T @ with_skipped


def _macros(
    tallies: _Tallies, names: tuple[str, ...], negative: str | None, suffix: str
) -> dict[str, Shares]:
    """The macro-F1 without the negative, if there is one, then over all classes."""
    everything = {f"macro{len(names)}{suffix}": _macro(tallies, names, None)}
    if negative is None:
        return everything
    positives = {f"macro{len(names) - 1}{suffix}": _macro(tallies, names, negative)}
    return positives | everything


def _macro(tallies: _Tallies, names: tuple[str, ...], excluded: str | None) -> Shares:
    # 2 TP / (answered + in key) is 2PR/(P+R) without the cases where P or R is undefined.
    f1 = _ratio(2 * tallies.hits, tallies.answered + tallies.in_key)
    counts = (tallies.in_key > 0) & np.array([name != excluded for name in names])
    return _ratio(np.where(counts, f1, 0.0).sum(-1), counts.sum(-1))


def _ratio(numerator: Counts | Shares, denominator: Counts) -> Shares:
    """The quotient; 0 for 0/0, as the official scorer has it."""
    zeros = np.zeros(np.shape(denominator))
    return np.divide(numerator, denominator, out=zeros, where=np.asarray(denominator) != 0)


def entity_type_baseline(
    train: Sequence[RelationExample | Example], test: Sequence[RelationExample | Example]
) -> tuple[str, ...]:
    """What a table from entity types to labels answers: no model, no reading of the sentence.

    For each test pair, the label that training pairs with the same types have most often (the
    first in the alphabet on a tie); types never seen get the label that is most frequent overall.

    Raises:
        DataError: There is no training pair, or a pair lacks its entity types.
    """
    if not train:
        raise DataError("entity-type baseline: no training pairs; give some")
    overall = Counter(str(row.label) for row in train)
    by_types: dict[str, Counter[str]] = {}
    for row in train:
        by_types.setdefault(_types(row), Counter())[str(row.label)] += 1
    return tuple(_most_frequent(by_types.get(_types(row), overall)) for row in test)


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda label: (-counts[label], label))


def _types(row: RelationExample | Example) -> str:
    """The types of both entities as one key: ``Peop-Org``."""
    if isinstance(row, Example):
        types = row.entity_types
    else:
        types = f"{row.head_type}-{row.tail_type}" if row.head_type and row.tail_type else None
    if types is None:
        raise DataError(
            f"entity-type baseline: pair {row.example_id} has no entity types; use data that has "
            "them, such as CoNLL04"
        )
    return types
