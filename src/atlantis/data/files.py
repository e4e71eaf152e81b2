"""Text and JSON files, read strictly: what is wrong becomes one line with the place and the fix."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from atlantis.errors import DataError

JsonObject = dict[str, object]


class _RepeatedKeyError(ValueError):
    """A JSON object holds one key twice; plain `json.loads` keeps the last and says nothing."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def shorten(value: object, *, max_characters: int = 60) -> str:
    """The value as Python writes it, on one line and cut to a readable length."""
    written = repr(value)
    return written if len(written) <= max_characters else written[: max_characters - 3] + "..."


def read_text(path: Path) -> str:
    """The whole file as text; a byte order mark at its beginning is not part of it.

    Raises:
        DataError: There is no such file, or it is not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; correct `path`, or the `root` that it starts from")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
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


def read_json_lines(path: Path) -> list[tuple[str, JsonObject]]:
    """The objects of a JSONL file, each with its place (``file:line``); blank lines are no rows.

    Raises:
        DataError: The file is missing, or a line is not a JSON object.
    """
    rows: list[tuple[str, JsonObject]] = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            rows.append((where, as_object(_parse_json(line, path, first_line=number), where)))
    return rows


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


def as_text(value: object, where: str) -> str:
    """The value as a string that is not blank and can be written as UTF-8."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a string, {_found(value)}")
    if not value.strip():
        raise DataError(f"{where}: is empty; fill it in or remove the row")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: holds half of a surrogate pair, {_found(value)}")
    return value


def _found(value: object) -> str:
    return f"found {shorten(value)}; correct it"


def column(row: Mapping[str, object], name: str, where: str) -> object:
    """One column of a row, refused with the names of those present if it is missing."""
    if name not in row:
        present = ", ".join(row) or "none"
        raise DataError(f"{where}: column {name!r} is missing (present: {present}); add it")
    return row[name]


def text_column(row: Mapping[str, object], name: str, where: str) -> str:
    """One column of a row that must hold text."""
    return as_text(column(row, name, where), f"{where}: {name}")


def content_id(*parts: str) -> str:
    """An id for a row that has none: 16 hexadecimal digits that depend only on its content."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
