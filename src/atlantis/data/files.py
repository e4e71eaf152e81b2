"""Text and JSON files, read strictly: what is wrong becomes one line with the place and the fix."""

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from atlantis.errors import DataError

JsonObject = dict[str, object]

LocatedObject = tuple[str, JsonObject]
"""The place of a row (``file:line``) and its columns."""

_DEEPEST = 64
_MOST_NAMES = 12
_LONGEST_NAME = 60
_LONGEST_REASON = 200


class _RepeatedKeyError(ValueError):
    """A JSON object holds one key twice; plain `json.loads` keeps the last and says nothing."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def shorten(value: object, *, max_characters: int = 60) -> str:
    """The value as Python writes it, on one line and cut to a readable length."""
    try:
        written = repr(value)
    except RecursionError:
        written = f"a {type(value).__name__} nested too deep to show"
    return written if len(written) <= max_characters else written[: max_characters - 3] + "..."


def one_line(error: Exception) -> str:
    """The beginning of what a library says went wrong."""
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return first if len(first) <= _LONGEST_REASON else first[: _LONGEST_REASON - 3] + "..."


def read_text(path: Path) -> str:
    """The whole file as text; a byte order mark at its beginning is not part of it.

    Raises:
        DataError: There is no such file, or it is not UTF-8.
    """
    with open_file(path) as file:
        raw = file.read().removeprefix(codecs.BOM_UTF8)
    return _decoded(raw, path, first_line=1)


def open_file(path: Path) -> BinaryIO:
    """The file, open for reading its bytes.

    Raises:
        DataError: There is no such file, or it cannot be opened.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; correct `path`, or the `root` that it starts from")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); correct that") from error


def _decoded(raw: bytes, path: Path, *, first_line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: invalid UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, ended by LF or CRLF.

    Not `str.splitlines`: that also cuts at U+2028 and U+0085, which JSON strings may hold.
    """
    return [line.removesuffix("\r") for line in read_text(path).split("\n")]


def read_json(path: Path) -> object:
    """The value that a JSON file holds.

    Raises:
        DataError: The file is missing, is not JSON, or an object in it repeats a key.
    """
    return _parse_json(read_text(path), path, first_line=1)


def read_json_lines(path: Path) -> Iterator[LocatedObject]:
    """The objects of a JSONL file, each with its place (``file:line``); blank lines are no rows.

    One line is in memory at a time. Lines end at LF or CRLF and nowhere else.

    Raises:
        DataError: The file is missing, or a line is not a JSON object.
    """
    with open_file(path) as lines:
        for number, raw in enumerate(lines, start=1):
            begin = codecs.BOM_UTF8 if number == 1 else b""
            line = _decoded(raw.removeprefix(begin), path, first_line=number)
            line = line.removesuffix("\n").removesuffix("\r")
            if line.strip():
                where = f"{path}:{number}"
                yield where, as_object(_parse_json(line, path, first_line=number), where)


def read_json_array(path: Path) -> Iterator[LocatedObject]:
    """The objects of a JSON file that holds one list, each with its place (``file:row number``).

    Raises:
        DataError: The file is missing, is not JSON, or holds anything else.
    """
    for number, value in enumerate(as_list(read_json(path), str(path))):
        where = f"{path}:row {number}"
        yield where, as_object(value, where)


def parse_json(text: str, where: str) -> object:
    """The value of JSON that stands as a string in a column.

    Raises:
        DataError: It is not JSON, or an object in it repeats a key.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except _RepeatedKeyError as error:
        raise DataError(
            f"{where}: key {shorten(error.key)} stands there twice; remove one"
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: not JSON ({error}), {_found(text)}") from None


def canonical_json(value: object, where: str) -> str:
    """The value as JSON, the same for equal values.

    Raises:
        DataError: JSON has no form for it, UTF-8 has none for its text, or it is nested too deep
            for chat templates and other readers.
    """
    if _is_deeper(value, _DEEPEST):
        raise DataError(f"{where}: is nested deeper than {_DEEPEST} levels; simplify it")
    try:
        written = json.dumps(
            value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        written.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half of a surrogate pair, {_found(value)}") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: JSON has no form for it ({error}); correct it") from None
    return written


def _is_deeper(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        inner = cast("JsonObject", value).values()
    elif isinstance(value, list | tuple):
        inner = cast("list[object]", value)
    else:
        return False
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _parse_json(text: str, path: Path, *, first_line: int) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}:{line}: not JSON ({error.msg}, column {error.colno}); correct this line"
        ) from error
    except _RepeatedKeyError as error:
        first, second = _lines_with_key(text, error.key, first_line)
        raise DataError(
            f"{path}:{second}: key {shorten(error.key)} already stands at line {first}; "
            "remove or rename one"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(
            f"{path}:{first_line}: JSON that cannot be read ({error}); simplify it"
        ) from error


def _unique_keys(pairs: list[tuple[str, object]]) -> JsonObject:
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found


def _lines_with_key(text: str, key: str, first_line: int) -> tuple[int, int]:
    """The lines of the first two occurrences of a key's own text (the same line if on one)."""
    quoted = json.dumps(key, ensure_ascii=False)
    first = text.find(quoted)
    second = text.find(quoted, first + 1)
    return first_line + text.count("\n", 0, first), first_line + text.count("\n", 0, second)


def as_object(value: object, where: str) -> JsonObject:
    """The value as a JSON object, refused if it is anything else."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with named columns, {_found(value)}")
    return cast("JsonObject", value)


def as_list(value: object, where: str) -> list[object]:
    """The value as a JSON list, refused if it is anything else."""
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a JSON list, {_found(value)}")
    return cast("list[object]", value)


def as_integer(value: object, where: str) -> int:
    """The value as an integer, refused if it is anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: expected an integer, {_found(value)}")
    return value


def as_string(value: object, where: str) -> str:
    """The value as a string that can be written as UTF-8; it may be empty."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a string, {_found(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half of a surrogate pair, {_found(value)}") from None
    return value


def as_text(value: object, where: str) -> str:
    """The value as a string that is not blank and can be written as UTF-8."""
    text = as_string(value, where)
    if not text.strip():
        raise DataError(f"{where}: is empty; fill it in or remove the row")
    return text


def _found(value: object) -> str:
    return f"found {shorten(value)}; correct it"


def column(row: Mapping[str, object], name: str, where: str) -> object:
    """One column of a row, refused with the names of those present if it is missing."""
    if name not in row:
        raise DataError(
            f"{where}: column {name!r} is missing (present: {column_names(row)}); add it"
        )
    return row[name]


def column_names(row: Mapping[str, object]) -> str:
    """The names of a row's columns as messages show them; only the first of very many."""
    names = [
        name if name.isprintable() and len(name) <= _LONGEST_NAME else shorten(name)
        for name in islice(row, _MOST_NAMES)
    ]
    more = f" and {len(row) - len(names)} more" if len(row) > len(names) else ""
    return (", ".join(names) or "none") + more


def text_column(row: Mapping[str, object], name: str, where: str) -> str:
    """One column of a row that must hold text."""
    return as_text(column(row, name, where), f"{where}: {name}")


def content_id(*parts: str) -> str:
    """An id for a row that has none: 16 hexadecimal digits that depend only on its content."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
