"""Strict reading of files: what the readers build on."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlantis.data import files
from atlantis.errors import DataError

TEXT = st.text(st.characters(blacklist_categories=["Cs"]))


def test_lines_end_at_lf_and_crlf_and_nowhere_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo\u2028still two\x0b\x85\nthree".encode())
    assert files.read_lines(path) == ["one", "two\u2028still two\x0b\x85", "three"]


@given(rows=st.lists(st.dictionaries(TEXT, TEXT), max_size=5), ascii_only=st.booleans())
def test_json_lines_come_back_as_they_were_written(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes("\n".join(lines).encode())
    read = list(files.read_json_lines(path))
    assert [row for _, row in read] == rows
    assert [where for where, _ in read] == [f"{path}:{n}" for n in range(1, len(rows) + 1)]


@given(content=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(content)
    message = f"{path}:"
    try:
        list(files.read_json_lines(path))
    except DataError as error:
        message = str(error)
    assert message.startswith(f"{path}:")
    assert "\n" not in message


def test_content_ids_depend_on_where_one_part_ends():
    expected = hashlib.sha256(b"ab\0c").hexdigest()[:16]
    assert files.content_id("ab", "c") == expected != files.content_id("a", "bc")


def test_a_boolean_is_no_integer():
    with pytest.raises(DataError, match="x: expected an integer, found True"):
        files.as_integer(True, "x")


def test_long_values_are_cut_in_messages():
    assert files.shorten("x" * 99, max_characters=10) == "'xxxxxx..."
