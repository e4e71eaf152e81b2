"""Parquet files: what Arrow does to rows is undone, and damage is one line."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from atlantis.data.sources import open_path
from atlantis.data.tables import read_parquet
from atlantis.errors import DataError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
MAPS = pa.array([[[("role", "user")]]], pa.list_(pa.map_("string", "string")))
OTHER = {"type": "function", "function": {"name": "say", "arguments": {"b": "x"}}}
CHATS = [
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"x": 1}}}],
    }
    for call in (CALL, OTHER)
]


def assert_read_or_refused_in_one_line(path):
    message = f"{path}:"
    try:
        list(open_path(path))
    except DataError as error:
        message = str(error)
    assert message.startswith(f"{path}:")
    assert "\n" not in message


def write(path, rows):
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)
    return path


def write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_rows_of_parquet_are_those_of_jsonl(tmp_path, kind):
    rows = [{"prompt": f"Q{n}", "completion": f" {n}"} for n in range(700)]
    columns = {name: pa.array([row[name] for row in rows], kind) for name in rows[0]}
    parquet = write(tmp_path / "a.parquet", pa.table(columns))
    lines = write_lines(tmp_path / "a.jsonl", rows)
    assert list(open_path(parquet)) == list(open_path(lines))
    places = [where for where, _ in open_path(parquet).located()]
    assert places == [f"{parquet}:row {n}" for n in range(700)]


def test_keys_that_arrow_fills_with_null_are_left_out(tmp_path):
    chats = [CHATS[0] | {"tools": [{"name": "add"}]}, CHATS[1] | {"tools": None}]
    parquet = write(tmp_path / "a.parquet", chats)
    assert pq.read_table(parquet)["messages"][0].as_py()[0]["tool_calls"] is None
    assert list(open_path(parquet)) == list(open_path(write_lines(tmp_path / "a.jsonl", chats)))


def test_columns_that_datasets_stores_as_json_are_parsed(tmp_path):
    mixed = [
        CHATS[0],
        {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]},
    ]
    lines = write_lines(tmp_path / "a.jsonl", mixed)
    loaded = Dataset.from_json(str(lines), cache_dir=str(tmp_path / "cache"))
    parquet = tmp_path / "a.parquet"
    loaded.to_parquet(parquet)
    assert "arrow.json" in str(pq.read_schema(parquet))
    assert list(open_path(parquet)) == list(open_path(lines))


def test_only_the_columns_that_a_format_reads_are_read(tmp_path):
    path = write(tmp_path / "a.parquet", [{"prompt": "Q", "completion": "A", "vector": [1.0]}])
    ((_, row),) = read_parquet(path, wanted={"prompt", "completion"})
    assert row == {"prompt": "Q", "completion": "A", "vector": None}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"text": ["x"]}), r"a\.parquet:row 0: no known format \(present: text\)"),
        (pa.table({"prompt": ["x"]}), r"a\.parquet:row 0: column 'completion' is missing"),
        (
            pa.table({"prompt": ["Q", "Q"], "completion": ["A", None]}),
            r"a\.parquet:row 1: completion is null",
        ),
        (
            pa.table({"prompt": ["Q"], "completion": [b"A"]}),
            r"a\.parquet:row 0: completion: expected a string, found b'A'",
        ),
        (pa.table({"prompt": [], "completion": []}), r"a\.parquet: no rows \(empty\)"),
        (pa.table([["Q"], ["Q"]], names=["prompt"] * 2), r"two columns are named 'prompt'"),
        (pa.table({"messages": MAPS}), r"messages\[0\]: expected a JSON object"),
        (
            pa.table({"messages": pa.array(["[1"], pa.json_())}),
            r"a\.parquet:row 0: messages: not JSON",
        ),
    ],
)  # fmt: skip
def test_bad_parquet_is_refused_in_one_line(tmp_path, table, message):
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises(DataError, match=message) as error:
        list(open_path(path))
    assert "\n" not in str(error.value)


def test_bytes_in_a_text_column_that_are_no_utf8_are_refused_with_their_row(tmp_path):
    text = pa.array([b"ok", b"\xff"]).view(pa.string())
    path = write(tmp_path / "a.parquet", pa.table({"prompt": text, "completion": ["A", "B"]}))
    with pytest.raises(DataError, match=r"a\.parquet:row 1: cannot be read \(.*utf-8"):
        list(open_path(path))


def test_a_parquet_file_cut_short_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [{"prompt": "Q", "completion": "A"}])
    for size in (0, 3, 100, path.stat().st_size - 1):
        (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:size])
        with pytest.raises(DataError, match=r"cut\.parquet: Parquet that cannot be read"):
            list(open_path(tmp_path / "cut.parquet"))


@pytest.fixture(scope="module")
def small_parquet(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("parquet") / "a.parquet", CHATS)
    return path, path.read_bytes()


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_one_wrong_byte_is_read_or_refused_in_one_line(small_parquet, place, byte):
    path, content = small_parquet
    place %= len(content)
    damaged = path.with_name("damaged.parquet")
    damaged.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
    assert_read_or_refused_in_one_line(damaged)


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    def peak(num_rows):
        rows = [{"prompt": f"Q{n}", "completion": "x" * 2000} for n in range(num_rows)]
        path = write(tmp_path / f"{num_rows}.parquet", rows)
        tracemalloc.start()
        assert sum(1 for _ in open_path(path)) == num_rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8000) < 1.5 * peak(1000) + 8 * 8000
