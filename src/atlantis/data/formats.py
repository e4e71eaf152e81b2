"""Readers of data files. Each returns its rows and says in words what it left out."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from atlantis.data import files
from atlantis.data.conll04 import NO_RELATION, read_conll04
from atlantis.data.rows import Rows, collect, marked_entities, without_markers
from atlantis.data.sources import open_path
from atlantis.data.wrench import read_wrench
from atlantis.errors import DataError
from atlantis.records import Example, RelationExample, Row

__all__ = [
    "NO_RELATION",
    "Rows",
    "read_conll04",
    "read_prompt_completion",
    "read_semeval",
    "read_wrench",
    "without_markers",
]

_SENTENCE = re.compile(r'(\d+)\t"(.*)"\s*')
_LABEL = re.compile(r"[\w-]+(\((e1,e2|e2,e1)\))?")


def read_semeval(path: Path) -> Rows[RelationExample]:
    """Rows of a SemEval-2010 Task 8 text file; the label is the true one.

    A row is ``id<TAB>"sentence"``, its label, comment lines, and a blank line. Its id is its
    number. Labels are any name, with or without a direction, so that corpora in the same layout
    can have relations of their own.

    Raises:
        DataError: The file is missing or a row is malformed; the message names the line.
    """
    blocks = _blocks(files.read_lines(path))
    return collect(path, (_semeval_row(path, block) for block in blocks), ())


def _blocks(lines: list[str]) -> Iterator[list[tuple[int, str]]]:
    """Runs of lines that are not blank, each line with its number."""
    for blank, block in groupby(enumerate(lines, start=1), key=lambda line: not line[1].strip()):
        if not blank:
            yield list(block)


def _semeval_row(path: Path, block: list[tuple[int, str]]) -> tuple[str, RelationExample]:
    (number, line), *rest = block
    where = f"{path}:{number}"
    sentence = _SENTENCE.fullmatch(line)
    if sentence is None:
        raise DataError(
            f"{where}: expected a number, a tab and a sentence in double quotes, "
            f"found {files.shorten(line)}; correct the line"
        )
    example_id, text = sentence.groups()
    label = _semeval_label(path, example_id, number, rest)
    head, tail = marked_entities(text, where)
    return where, RelationExample(example_id, text, head, tail, label, gold_label=label)


def _semeval_label(path: Path, example_id: str, number: int, rest: list[tuple[int, str]]) -> str:
    if not rest:
        raise DataError(
            f"{path}:{number}: sentence {example_id} has no label below it; use the file with "
            "labels (TEST_FILE_FULL.TXT has those of the test set)"
        )
    for later, line in rest:
        if _SENTENCE.fullmatch(line):
            raise DataError(f"{path}:{later}: a sentence begins here; put a blank line above it")
    (label_number, line), *_ = rest
    if not _LABEL.fullmatch(line.strip()):
        raise DataError(
            f"{path}:{label_number}: unknown label {files.shorten(line.strip())}; write a "
            "relation with (e1,e2) or (e2,e1), or a name without direction such as Other"
        )
    return line.strip()


def read_prompt_completion(path: Path) -> Rows[Example]:
    """All rows of a file with a prompt and a completion that are text, used as they stand.

    The label is the completion without surrounding whitespace. ``gold_completion`` gives the
    true label, and ``example_id`` the id; without it the id follows from the content. What files
    can be read, `atlantis.data.sources.open_source` says.

    Raises:
        DataError: The file is missing, a row is malformed or is a chat; the message names it.
    """
    return collect(path, map(_as_text, open_path(path).located()), ())


def _as_text(located: tuple[str, Row]) -> tuple[str, Example]:
    where, row = located
    if not isinstance(row, Example):
        raise DataError(f"{where}: is a chat; give `prompt` and `completion` as text here")
    return where, row
