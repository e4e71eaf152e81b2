"""From a configuration to training, trusted, held-out and test examples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from atlantis.data import formats
from atlantis.data.config import DataConfig, SplitConfig
from atlantis.errors import DataError
from atlantis.records import Example, LabelSet, RelationExample, base_relation

__all__ = ["DataConfig", "SplitConfig", "Splits", "load_splits"]

_SAMPLE_STREAM, _NOISE_STREAM, _HOLDOUT_STREAM = range(3)
"""Each use of a split's seed draws from a stream of its own, so that none shifts another."""

_Row = RelationExample | Example
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Splits:
    """The data of a run."""

    train: tuple[Example, ...]
    trusted: tuple[Example, ...]
    """Trusted rows for training; their ids begin with ``trusted-``. Empty where none are asked."""
    heldout: tuple[Example, ...]
    """Trusted rows set aside, never trained on."""
    test: tuple[Example, ...]
    labels: LabelSet
    """Every label, given or true, of any split."""
    notes: tuple[str, ...]
    """One sentence for everything that was left out or changed, with counts."""


class _Kept(NamedTuple):
    """Rows after a step, and what there is to say about it."""

    rows: list[_Row]
    notes: tuple[str, ...] = ()


def load_splits(config: DataConfig) -> Splits:
    """Reads all splits, then leaves out, samples and changes labels as configured.

    Each split goes through these steps: read, drop directions, drop labels, exclude the sentences
    of other splits (as those end up), sample, add noise, render prompt and completion.

    Raises:
        DataError: A file is bad, a step has nothing to work on or leaves no row, or the labels of
            the splits do not fit together.
    """
    rows: dict[str, list[_Row]] = {}
    notes: list[str] = []
    for name in config.reading_order():
        rows[name], said = _load_split(name, config, rows)
        notes += [f"{name}: {note}" for note in said]
    notes += _overlaps(rows)
    labels, unseen = _label_set(rows, config.negative_label)
    examples = {name: [_render(row, config) for row in part] for name, part in rows.items()}
    trusted, heldout = _hold_out(examples.get("trusted", []), config)
    _refuse_shared_ids(examples["train"], [*trusted, *heldout])
    if heldout:
        notes.append(f"trusted: {len(heldout)} of {len(rows['trusted'])} rows are held out")
    train, test = tuple(examples["train"]), tuple(examples["test"])
    return Splits(train, tuple(trusted), tuple(heldout), test, labels, (*notes, *unseen))


def _load_split(name: str, config: DataConfig, done: Mapping[str, list[_Row]]) -> _Kept:
    split = config.splits[name]
    found = _read(split, config)
    rows, notes = list[_Row](found.rows), list(found.dropped)
    if split.direction == "drop":
        rows = _without_direction(rows, name)
    steps: tuple[Callable[[list[_Row]], _Kept], ...] = (
        lambda rows: _without_labels(rows, split.drop_labels, name),
        lambda rows: _without_sentences(rows, {other: done[other] for other in split.excluding}),
        lambda rows: _sampled(rows, split, name),
        lambda rows: _with_noise(rows, split),
    )
    for step in steps:
        rows, said = step(rows)
        notes += said
        if not rows:
            raise DataError(f"{name}: no row is left ({'; '.join(notes)}); relax the split")
    return _Kept(rows, tuple(notes))


def _read(
    split: SplitConfig, config: DataConfig
) -> formats.Rows[RelationExample] | formats.Rows[Example]:
    path = config.root / split.path
    if split.format == "semeval":
        return formats.read_semeval(path)
    if split.format == "wrench":
        return formats.read_wrench(path, labels=split.labels, seed=split.seed)
    if split.format == "conll04":
        assert split.mode is not None  # SplitConfig requires it
        return formats.read_conll04(path, mode=split.mode)
    return formats.read_prompt_completion(path)


def _without_direction(rows: Sequence[_Row], name: str) -> list[_Row]:
    if all(base_relation(str(row.label)) == row.label for row in rows):
        raise DataError(f"{name}: direction: drop has no effect, no label has one; remove it")
    return [
        replace(
            row,
            label=base_relation(str(row.label)),
            gold_label=row.gold_label and base_relation(row.gold_label),
        )
        for row in rows
    ]


def _without_labels(rows: list[_Row], drop_labels: Iterable[str], name: str) -> _Kept:
    counts = {label: sum(row.label == label for row in rows) for label in drop_labels}
    for label, count in counts.items():
        if count == 0:
            present = ", ".join(sorted({str(row.label) for row in rows}))
            raise DataError(
                f"{name}: drop_labels: no row is labelled {label!r}; there are {present}"
            )
    kept = [row for row in rows if row.label not in counts]
    return _Kept(kept, tuple(f"{n} rows labelled {label} dropped" for label, n in counts.items()))


def _sentence_key(row: _Row) -> str:
    """What stays when markers, case, spaces and punctuation are ignored; maybe nothing."""
    text = row.text or row.prompt if isinstance(row, Example) else row.text
    bare = formats.without_markers(text).lower()
    return "".join(character for character in bare if character.isalnum())


def _sentence_keys(rows: Iterable[_Row]) -> set[str]:
    return {_sentence_key(row) for row in rows} - {""}


def _without_sentences(rows: list[_Row], others: Mapping[str, Sequence[_Row]]) -> _Kept:
    notes: list[str] = []
    for other, unwanted in others.items():
        keys = _sentence_keys(unwanted)
        kept = [row for row in rows if _sentence_key(row) not in keys]
        notes.append(f"{len(rows) - len(kept)} rows excluded, their sentences stand in {other}")
        rows = kept
    return _Kept(rows, tuple(notes))


def _draw(items: Sequence[_T], size: int, seed: int, stream: int) -> list[bool]:
    """Which of the items a seeded draw without replacement takes."""
    rng = np.random.default_rng([seed, stream])
    drawn = set(rng.choice(len(items), size=size, replace=False).tolist())
    return [index in drawn for index in range(len(items))]


def _sampled(rows: list[_Row], split: SplitConfig, name: str) -> _Kept:
    if split.sample is None:
        return _Kept(rows)
    if split.sample > len(rows):
        raise DataError(f"{name}: cannot sample {split.sample} of {len(rows)} rows; lower `sample`")
    taken = _draw(rows, split.sample, split.seed, _SAMPLE_STREAM)
    kept = [row for row, take in zip(rows, taken, strict=True) if take]
    return _Kept(kept, (f"{len(kept)} of {len(rows)} rows sampled (seed {split.seed})",))


def _with_noise(rows: list[_Row], split: SplitConfig) -> _Kept:
    if split.noise is None:
        return _Kept(rows)
    noisy = split.noise.apply(
        [str(row.label) for row in rows],
        [row.gold_label for row in rows],
        rng=np.random.default_rng([split.seed, _NOISE_STREAM]),
    )
    changed: list[_Row] = [
        replace(row, label=label) for row, label in zip(rows, noisy, strict=True)
    ]
    num_wrong = sum(row.label != row.gold_label for row in changed)
    return _Kept(
        changed,
        (f"{num_wrong} of {len(rows)} labels are wrong after {split.noise.kind} noise",),
    )


def _overlaps(rows: Mapping[str, list[_Row]]) -> list[str]:
    """A note for every pair of splits that still share sentences."""
    keys = {name: _sentence_keys(part) for name, part in rows.items()}
    pairs = [("train", "test"), ("trusted", "test"), ("train", "trusted")]
    return [
        f"{left}: {len(keys[left] & keys[right])} sentences also stand in {right}; "
        f"`excluding: [{right}]` leaves them out"
        for left, right in pairs
        if left in keys and right in keys and keys[left] & keys[right]
    ]


def _label_set(
    rows: Mapping[str, list[_Row]], negative: str | None
) -> tuple[LabelSet, tuple[str, ...]]:
    """All labels, and a note for each test label that training never shows."""
    given = {name: {str(row.label) for row in part} for name, part in rows.items()}
    true = {str(row.gold_label) for part in rows.values() for row in part if row.gold_label}
    names = tuple(sorted(true.union(*given.values())))
    if negative is not None and negative not in names:
        raise DataError(f"negative_label {negative!r} never occurs; labels are {', '.join(names)}")
    _refuse_mixed_directions(names)
    unseen = sorted(given["test"] - given["train"])
    notes = (f"test: labels that never occur in train: {', '.join(unseen)}",) if unseen else ()
    return LabelSet(names, negative), notes


def _refuse_mixed_directions(names: Sequence[str]) -> None:
    for name in names:
        if base_relation(name) != name and base_relation(name) in names:
            raise DataError(
                f"label {base_relation(name)!r} occurs with direction ({name}) and without; set "
                "`direction` so that all splits agree"
            )


def _render(row: _Row, config: DataConfig) -> Example:
    if isinstance(row, Example):
        return row
    return Example(
        row.example_id,
        config.render_prompt(row),
        config.completion.format(label=row.label),
        label=row.label,
        gold_label=row.gold_label,
        text=row.text,
        entity_types=f"{row.head_type}-{row.tail_type}" if row.head_type else None,
    )


def _hold_out(trusted: list[Example], config: DataConfig) -> tuple[list[Example], list[Example]]:
    """The trusted rows to train on and those set aside, under ids of their own."""
    named = [replace(row, example_id=f"trusted-{row.example_id}") for row in trusted]
    if config.trusted is None or config.holdout_fraction == 0:
        return named, []
    num_heldout = round(config.holdout_fraction * len(named))
    if not 0 < num_heldout < len(named):
        raise DataError(
            f"trusted: holdout_fraction {config.holdout_fraction} of {len(named)} rows holds out "
            f"{num_heldout}, which leaves one side empty; change it or give more rows"
        )
    aside = _draw(named, num_heldout, config.trusted.seed, _HOLDOUT_STREAM)
    pairs = list(zip(named, aside, strict=True))
    return [row for row, held in pairs if not held], [row for row, held in pairs if held]


def _refuse_shared_ids(train: Iterable[Example], trusted: Iterable[Example]) -> None:
    shared = {row.example_id for row in train} & {row.example_id for row in trusted}
    if shared:
        raise DataError(
            f"id {min(shared)!r} stands in train and, prefixed, in trusted; rename it in train"
        )
