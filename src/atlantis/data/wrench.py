"""Reader of WRENCH relation data: sentences with the votes of labelling functions."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from atlantis.data import files
from atlantis.data.rows import Rows, collect, marked_entities
from atlantis.errors import DataError
from atlantis.records import RelationExample

_ABSTAINS = -1
_VOTE_SOURCE = re.compile(r"gold|majority|function:\d+")


def read_wrench(path: Path, *, labels: str = "gold", seed: int = 0) -> Rows[RelationExample]:
    """Rows of a WRENCH relation file, labelled by the source that is asked for.

    The gold label is kept beside it whatever the source. Ids are the file's own keys, prefixed.

    Args:
        path: A JSON object of rows with ``label``, ``data`` and ``weak_labels``; the names of
            the classes stand in ``label.json`` beside it.
        labels: ``gold``; ``majority``, the class with most votes; or ``function:<n>``, the vote
            of one labelling function, counted from 0. Rows without a vote are left out.
        seed: Decides which class wins a tied majority.

    Raises:
        DataError: A file is missing or a row is malformed; the message names the row.
    """
    if not _VOTE_SOURCE.fullmatch(labels):
        raise DataError(f"labels {labels!r}: write gold, majority or function:<number>")
    names = _class_names(path.parent / "label.json")
    rng = np.random.default_rng(seed)
    located: list[tuple[str, RelationExample]] = []
    abstained = 0
    for key, value in files.as_object(files.read_json(path), str(path)).items():
        where = f"{path} row {key!r}"
        row = files.as_object(value, where)
        chosen = _chosen_class(row, labels, where, rng)
        if chosen == _ABSTAINS:
            abstained += 1
        else:
            located.append((where, _wrench_example(key, row, names, chosen, where)))
    who = "every labelling function" if labels == "majority" else f"labelling {labels}"
    dropped = (f"{abstained} rows of {path.name} left out because {who} abstains",)
    return collect(path, located, dropped if abstained else ())


def _class_names(path: Path) -> dict[int, str]:
    names = files.as_object(files.read_json(path), str(path))
    for key in names:
        if not key.isdecimal():
            raise DataError(f"{path}: key {key!r} is no class number; number classes from 0")
    return {int(key): files.text_column(names, key, str(path)) for key in names}


def _chosen_class(row: files.JsonObject, labels: str, where: str, rng: np.random.Generator) -> int:
    if labels == "gold":
        return files.as_integer(files.column(row, "label", where), f"{where}: label")
    listed = files.as_list(files.column(row, "weak_labels", where), f"{where}: weak_labels")
    votes = [files.as_integer(vote, f"{where}: weak_labels") for vote in listed]
    if labels == "majority":
        return _majority(votes, rng)
    function = int(labels.removeprefix("function:"))
    if function >= len(votes):
        raise DataError(f"{where}: no labelling function {function}; the last is {len(votes) - 1}")
    return votes[function]


def _majority(votes: list[int], rng: np.random.Generator) -> int:
    counts = Counter(vote for vote in votes if vote != _ABSTAINS)
    if not counts:
        return _ABSTAINS
    most = max(counts.values())
    tied = sorted(vote for vote, count in counts.items() if count == most)
    return tied[rng.integers(len(tied))] if len(tied) > 1 else tied[0]


def _wrench_example(
    key: str, row: files.JsonObject, names: dict[int, str], chosen: int, where: str
) -> RelationExample:
    gold = files.as_integer(files.column(row, "label", where), f"{where}: label")
    for number in (chosen, gold):
        if number not in names:
            raise DataError(f"{where}: unknown label {number}; label.json names {sorted(names)}")
    data = files.as_object(files.column(row, "data", where), f"{where}: data")
    text = _insert_markers(data, where)
    head, tail = marked_entities(text, where)
    return RelationExample(f"wrench-{key}", text, head, tail, names[chosen], names[gold])


def _insert_markers(data: files.JsonObject, where: str) -> str:
    text = files.text_column(data, "text", where)
    spans = [(*_span(data, number, text, where), number) for number in (1, 2)]
    for start, end, number in sorted(spans, reverse=True):
        text = f"{text[:start]}<e{number}>{text[start:end]}</e{number}>{text[end:]}"
    return text


def _span(data: files.JsonObject, number: int, text: str, where: str) -> tuple[int, int]:
    name = f"span{number}"
    listed = files.as_list(files.column(data, name, where), f"{where}: {name}")
    span = [files.as_integer(bound, f"{where}: {name}") for bound in listed]
    entity = files.text_column(data, f"entity{number}", where)
    if len(span) != 2 or span[0] < 0 or text[span[0] : span[1]] != entity:
        raise DataError(
            f"{where}: {name} {span} does not cover entity{number} {entity!r}; correct one"
        )
    return span[0], span[1]
