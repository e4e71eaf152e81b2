"""Reader of CoNLL04 entities and relations in the JSON layout of SpERT."""

from itertools import permutations
from pathlib import Path
from typing import Literal, NamedTuple

from atlantis.data import files
from atlantis.data.rows import Rows, collect, marked_entities
from atlantis.errors import DataError
from atlantis.records import RelationExample

NO_RELATION = "NO_RELATION"
"""The label of a pair that stands in no relation."""


class _Entity(NamedTuple):
    start: int
    end: int
    kind: str


def read_conll04(path: Path, *, mode: Literal["gold_pairs", "with_none"]) -> Rows[RelationExample]:
    """Pairs of entities of a CoNLL04 file in SpERT's JSON layout.

    Args:
        path: A JSON list of sentences with ``tokens``, ``tags`` (BILOU) and ``relations``, whose
            ``head`` and ``tail`` count the sentence's entities in order of appearance.
        mode: ``gold_pairs`` gives the pairs that stand in a relation; ``with_none`` every ordered
            pair of entities, labelled `NO_RELATION` where there is none.

    Raises:
        DataError: The file is missing or a sentence is malformed; the message names the row.
    """
    located: list[tuple[str, RelationExample]] = []
    without_pairs = 0
    for number, value in enumerate(files.as_list(files.read_json(path), str(path))):
        where = f"{path} row {number}"
        pairs = _conll04_pairs(files.as_object(value, where), where, mode)
        located += [(where, row) for row in pairs]
        without_pairs += not pairs
    reason = f"{without_pairs} sentences of {path.name} give no pair in mode {mode}"
    return collect(path, located, (reason,) if without_pairs else ())


def _conll04_pairs(
    row: files.JsonObject, where: str, mode: Literal["gold_pairs", "with_none"]
) -> list[RelationExample]:
    tokens = [files.as_text(t, where) for t in _list_column(row, "tokens", where)]
    tags = [files.as_text(t, where) for t in _list_column(row, "tags", where)]
    if len(tokens) != len(tags):
        raise DataError(f"{where}: {len(tokens)} tokens but {len(tags)} tags; give one tag each")
    entities = _bilou_entities(tags, where)
    labels = _conll04_relations(row, len(entities), where)
    pairs = labels if mode == "gold_pairs" else permutations(range(len(entities)), 2)
    sentence_id = row["orig_id"] if "orig_id" in row else files.content_id(*tokens)
    return [
        _conll04_example(
            f"conll04-{sentence_id}-{pair[0]}-{pair[1]}",
            _marked_text(tokens, entities[pair[0]], entities[pair[1]]),
            kinds=(entities[pair[0]].kind, entities[pair[1]].kind),
            label=labels.get(pair, NO_RELATION),
            where=where,
        )
        for pair in pairs
    ]


def _list_column(row: files.JsonObject, name: str, where: str) -> list[object]:
    return files.as_list(files.column(row, name, where), f"{where}: {name}")


def _bilou_entities(tags: list[str], where: str) -> list[_Entity]:
    entities: list[_Entity] = []
    opened: _Entity | None = None
    for position, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        continues = opened is not None and kind == opened.kind
        if prefix not in "BILOU" or continues != (prefix in "IL") or (opened and not continues):
            raise DataError(f"{where}: tag {tag!r} at token {position} is no BILOU continuation")
        if prefix in "BU":
            opened = _Entity(position, position + 1, kind)
        if prefix in "UL" and opened:
            entities.append(opened._replace(end=position + 1))
        opened = opened if prefix in "BI" else None
    if opened:
        raise DataError(f"{where}: the last entity has no L- tag; close it")
    return entities


def _conll04_relations(
    row: files.JsonObject, num_entities: int, where: str
) -> dict[tuple[int, int], str]:
    labels: dict[tuple[int, int], str] = {}
    for value in _list_column(row, "relations", where):
        relation = files.as_object(value, f"{where}: relation")
        head, tail = (
            files.as_integer(files.column(relation, end, where), f"{where}: {end}")
            for end in ("head", "tail")
        )
        if head == tail or not (0 <= head < num_entities and 0 <= tail < num_entities):
            raise DataError(
                f"{where}: relation {head}->{tail} does not join two of {num_entities} entities; "
                "count the sentence's entities from 0"
            )
        if (head, tail) in labels:
            raise DataError(f"{where}: pair {head}->{tail} has two relations; keep one")
        labels[head, tail] = files.text_column(relation, "type", where)
    return labels


def _marked_text(tokens: list[str], head: _Entity, tail: _Entity) -> str:
    marked = list(tokens)
    for entity, tag in ((head, "e1"), (tail, "e2")):
        marked[entity.start] = f"<{tag}>{marked[entity.start]}"
        marked[entity.end - 1] = f"{marked[entity.end - 1]}</{tag}>"
    return " ".join(marked)


def _conll04_example(
    example_id: str, text: str, *, kinds: tuple[str, str], label: str, where: str
) -> RelationExample:
    head, tail = marked_entities(text, where)
    return RelationExample(example_id, text, head, tail, label, label, *kinds)
