"""What every reader of relation data shares: its result, unique ids, and the entity markers."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from atlantis.data import files
from atlantis.errors import DataError
from atlantis.records import Example, RelationExample

_MARKER = re.compile(r"</?e[12]>")

Row = TypeVar("Row", RelationExample, Example)


class Rows(NamedTuple, Generic[Row]):
    """What a reader returns."""

    rows: tuple[Row, ...]
    dropped: tuple[str, ...]
    """One sentence for each reason why something in the file became no row, with its count."""


def without_markers(text: str) -> str:
    """The bare sentence, without ``<e1>``, ``</e1>``, ``<e2>`` and ``</e2>``."""
    return _MARKER.sub("", text)


def collect(path: Path, located: Iterable[tuple[str, Row]], dropped: Iterable[str]) -> Rows[Row]:
    """The rows in file order, refused if there are none or two have the same id."""
    first: dict[str, str] = {}
    rows: list[Row] = []
    for where, row in located:
        if row.example_id in first:
            raise DataError(
                f"{where}: id {row.example_id!r} already stands at {first[row.example_id]}; "
                "remove one row or give it an id of its own"
            )
        first[row.example_id] = where
        rows.append(row)
    dropped = tuple(dropped)
    if not rows:
        raise DataError(f"{path}: no rows ({'; '.join(dropped) or 'empty'}); check the file")
    return Rows(tuple(rows), dropped)


class MarkedEntities(NamedTuple):
    """The surface texts of entity 1 and entity 2."""

    head: str
    tail: str


def marked_entities(text: str, where: str) -> MarkedEntities:
    """What stands between the markers; each marker must occur once, and spans must not cross."""
    order = [match.group() for match in _MARKER.finditer(text)]
    if order not in (["<e1>", "</e1>", "<e2>", "</e2>"], ["<e2>", "</e2>", "<e1>", "</e1>"]):
        raise DataError(
            f"{where}: expected <e1>..</e1> and <e2>..</e2> once each and apart, "
            f"found {' '.join(order) or 'no markers'}; mark both entities"
        )
    inside = [text.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("e1", "e2")]
    return MarkedEntities(*(files.as_text(entity, f"{where}: entity") for entity in inside))
