"""Test rows as a task with a closed set of labels, or a refusal that says why they are none."""

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atlantis.data.files import read_lines
from atlantis.data.formats import read_prompt_completion
from atlantis.errors import ConfigError, DataError
from atlantis.records import Example, LabelSet

AUTO = "auto"
_MOST_LABELS = 200


class LabelTask(NamedTuple):
    """What `atlantis.evaluation.stage.run` asks for."""

    rows: Sequence[Example]
    labels: LabelSet
    completions: dict[str, str]
    """How each label stands after a prompt: with the whitespace that the rows have around it."""


def read_label_task(path: Path, *, labels: str, negative: str | None) -> LabelTask:
    """Read a test file whose completions are labels.

    Args:
        path: JSONL with ``prompt`` and ``completion``; the label is the stripped completion.
        labels: A text file with one label per line, or ``auto`` for those of the rows.
        negative: The label that means "none of these", if there is one.

    Raises:
        DataError: The rows are no classification task, or have a label that is not in the set.
        ConfigError: ``negative`` is no label.
    """
    rows = read_prompt_completion(path).rows
    found = {str(label) for row in rows for label in (row.label, row.gold_label) if label}
    names = sorted(found) if labels == AUTO else _read_labels(Path(labels))
    if len(names) > _MOST_LABELS:
        raise DataError(
            f"{path if labels == AUTO else labels}: {len(names):,} distinct labels, over "
            f"{_MOST_LABELS}: not a classification task; name its labels with --labels"
        )
    if len(names) < 2:
        raise DataError(f"{path}: {names[0]!r} is the only label; name all of them with --labels")
    _refuse_unknown(rows, names, path=path, labels=labels)
    if negative is not None and negative not in names:
        raise ConfigError(f"--negative-label {negative!r} is no label; there are {_list(names)}")
    before, after = _whitespace(rows, path)
    return LabelTask(
        rows,
        LabelSet(tuple(names), negative),
        {name: f"{before}{name}{after}" for name in names},
    )


def _read_labels(path: Path) -> list[str]:
    names = [line.strip() for line in read_lines(path) if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: label {twice[0]!r} stands there twice; remove one")
    if not names:
        raise DataError(f"{path}: no labels; write one per line")
    return sorted(names)


def _refuse_unknown(
    rows: Sequence[Example], names: Sequence[str], *, path: Path, labels: str
) -> None:
    known = set(names)
    for row in rows:
        for label in (row.label, row.gold_label):
            if label is not None and label not in known:
                near = difflib.get_close_matches(label, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {_list(names)}"
                raise DataError(
                    f"{path}: row {row.example_id!r} has the unknown label {label!r}, which is not "
                    f"in {labels}; {hint}"
                )


def _whitespace(rows: Sequence[Example], path: Path) -> tuple[str, str]:
    """What stands before and after the label in every row."""
    first = _around(rows[0])
    for row in rows:
        if _around(row) != first:
            raise DataError(
                f"{path}: row {row.example_id!r} has other whitespace around its label than row "
                f"{rows[0].example_id!r} ({_around(row)} and {first}); make them the same"
            )
    return first


def _around(row: Example) -> tuple[str, str]:
    text = row.completion
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]


def _list(names: Sequence[str], *, most: int = 20) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
