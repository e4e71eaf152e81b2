"""Files and folders of instruction data: read again and again, strictly, in bounded memory."""

import json
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlantis.data import ids, sources
from atlantis.data.sources import open_path, open_source
from atlantis.errors import DataError
from atlantis.records import Conversation, Example

ROWS = [{"prompt": f"Q{n}", "completion": f" {n}"} for n in range(5)]
CHAT = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


def assert_read_or_refused_in_one_line(path):
    message = f"{path}:"
    try:
        list(open_path(path))
    except DataError as error:
        message = str(error)
    assert message.startswith(f"{path}:")
    assert "\n" not in message


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_source_is_read_again_and_again(tmp_path):
    source = open_source(str(write(tmp_path / "a.jsonl", *ROWS)))
    first = iter(source)
    next(first)  # a pass that is given up changes nothing
    assert [row.prompt for row in source] == [row.prompt for row in source]
    assert [row.prompt for row in source] == [f"Q{n}" for n in range(5)]


@pytest.mark.parametrize("start", ["", "\ufeff", " \n"])
def test_a_json_file_holds_one_list_or_one_row_per_line(tmp_path, start):
    array = tmp_path / "array.json"
    array.write_text(start + json.dumps(ROWS, indent=2))
    lines = tmp_path / "lines.json"
    lines.write_text(start + "\n".join(map(json.dumps, ROWS)))
    assert list(open_path(array)) == list(open_path(lines))
    assert [where for where, _ in open_path(array).located()][:2] == [
        f"{array}:row 0",
        f"{array}:row 1",
    ]


def test_a_folder_is_its_shards_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "d" / "b.jsonl", *ROWS[2:])
    write(tmp_path / "d" / "a.jsonl", *ROWS[:2])
    for hidden in ("_SUCCESS.jsonl", ".a.jsonl", "dataset_infos.json", "README.md"):
        (tmp_path / "d" / hidden).write_text("no rows")
    source = open_source(str(tmp_path / "d"))
    assert [row.prompt for row in source] == [f"Q{n}" for n in range(5)]
    assert [where for where, _ in source.located()][1:3] == [
        f"{tmp_path / 'd' / 'a.jsonl'}:2",
        f"{tmp_path / 'd' / 'b.jsonl'}:1",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"d: no data; a folder of shards holds"),
        (["a.jsonl", "a.parquet"], r"d: files of several kinds, \.jsonl and \.parquet"),
        (
            ["train-0.jsonl", "test-0.jsonl", "train-1.jsonl"],
            r"d: holds the splits test, train; name one file",
        ),
    ],
)
def test_folders_that_could_mean_several_things_are_refused(tmp_path, names, message):
    (tmp_path / "d").mkdir()
    for name in names:
        (tmp_path / "d" / name).touch()
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / "d"))


def test_names_that_only_begin_like_a_split_are_no_splits(tmp_path):
    for n, name in enumerate(["testimony.jsonl", "training.jsonl", "valid8.jsonl"]):
        write(tmp_path / "d" / name, ROWS[n])
    assert len(list(open_source(str(tmp_path / "d")))) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gone.jsonl", r"gone\.jsonl: no such file or folder; correct the path, or write hub:NAME"),
        ("", r"no data|several kinds"),
        ("x\0", "no such file"),
        ("x" * 5000, r"'xxx.*\.\.\.: no path \(File name too long\)"),
        ("rows.csv", r"rows\.csv: unknown kind of file; use \.jsonl, \.ndjson, \.json, \.parquet"),
        ("rows.jsonl.gz", r"rows\.jsonl\.gz: unknown kind of file"),
    ],
)
def test_what_is_no_data_is_refused_before_anything_is_read(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.csv", "rows.jsonl.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        open_source(data)


def test_rows_of_two_formats_are_refused_with_both_places(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[0], CHAT)
    with pytest.raises(
        DataError,
        match=r"a\.jsonl:2: is messages, but .*a\.jsonl:1 is prompt and completion; keep one",
    ):
        list(open_path(path))
    chat = {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}
    with pytest.raises(DataError, match=r":2: is prompt and completion as messages, but"):
        list(open_path(write(tmp_path / "b.jsonl", ROWS[0], chat)))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jsonl: no rows \(empty\); check the file"):
        list(open_path(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*ROWS, ROWS[1]], r"a\.jsonl:6: id '[0-9a-f]{16}' already stands at .*a\.jsonl:2 \("),
        ([*ROWS, ROWS[1], ROWS[1]], r"a\.jsonl:6: .*a\.jsonl:2 \(ids that occur twice so far: 1\)"),
        ([CHAT, CHAT], r"a\.jsonl:2: .* give it an `example_id` of its own \(without one, the id"),
        (
            [row | {"example_id": n % 4} for n, row in enumerate(ROWS)],
            r"a\.jsonl:5: id '0' already stands at .*a\.jsonl:1",
        ),
    ],
)
@pytest.mark.parametrize("num_pending", [1, 3, 1 << 14])
def test_repeated_ids_are_refused_with_both_places(
    tmp_path, monkeypatch, num_pending, rows, expected
):
    monkeypatch.setattr(ids, "_NUM_PENDING", num_pending)
    with pytest.raises(DataError, match=expected):
        list(open_path(write(tmp_path / "a.jsonl", *rows)))


def test_two_ids_with_one_digest_are_no_repetition(tmp_path, monkeypatch):
    for module in (ids, sources):
        monkeypatch.setattr(module, "id_digest", lambda example_id: 7)
    monkeypatch.setattr(ids, "_NUM_PENDING", 2)
    path = write(tmp_path / "a.jsonl", *ROWS)
    assert len(list(open_path(path))) == 5
    with pytest.raises(DataError, match=r":6: id .* already stands at .*:3"):
        list(open_path(write(tmp_path / "a.jsonl", *ROWS, ROWS[2])))


def test_a_megabyte_in_one_row_and_separators_inside_strings_are_fine(tmp_path):
    text = "x\u2028\u0085 \0" * 200_000
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "Q", "completion": text}, ensure_ascii=False))
    (row,) = open_path(path)
    assert row.completion == text


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    def peak(num_rows):
        rows = ({"prompt": f"Q{n}", "completion": "x" * 2000} for n in range(num_rows))
        path = write(tmp_path / f"{num_rows}.jsonl", *rows)
        tracemalloc.start()
        assert sum(1 for _ in open_path(path)) == num_rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # 8 bytes for an id, and twice that for a moment when runs are joined.
    assert peak(20_000) < peak(1000) + 3 * 8 * 20_000


@given(content=st.binary(max_size=60), name=st.sampled_from(["a.jsonl", "a.json", "a.parquet"]))
def test_any_bytes_are_rows_or_refused_in_one_line(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(b"PAR1" + content + b"PAR1" if name == "a.parquet" else content)
    assert_read_or_refused_in_one_line(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["prompt", "completion", "messages", "conversations", "example_id"])


@given(
    rows=st.lists(st.dictionaries(COLUMNS, VALUES, max_size=3), max_size=3), as_list=st.booleans()
)
def test_any_json_is_rows_or_refused_in_one_line(tmp_path_factory, rows, as_list):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows)))
    assert_read_or_refused_in_one_line(path)


@pytest.mark.parametrize(
    ("name", "num_rows", "num_learnt"),
    [("messages_demo.jsonl", 500, 500), ("sharegpt_demo.json", 500, 1000),
     ("sharegpt_tools_demo.json", 300, 746 + 211)],
)  # fmt: skip
def test_real_chats_are_read_and_all_that_the_assistant_says_is_learnt(
    shared_data, name, num_rows, num_learnt
):
    rows = [row for _, row in open_path(shared_data / "instruct" / name).located()]
    assert all(isinstance(row, Conversation) for row in rows)
    assert (len(rows), sum(len(row.learnt) for row in rows)) == (num_rows, num_learnt)
    roles = Counter(message["role"] for row in rows for message in row.messages)
    assert roles["assistant"] == num_learnt
    if "tools" in name:
        assert roles["tool"] == 211


def test_real_rows_that_stand_twice_are_refused(shared_data):
    with pytest.raises(DataError, match=r"jsonl:326: id '\w+' already stands at .*jsonl:168"):
        list(open_path(shared_data / "instruct" / "messages_demo.jsonl"))


def test_real_alpaca_rows_are_read_and_its_empty_answers_refused(shared_data, tmp_path):
    path = shared_data / "instruct" / "alpaca_6k.jsonl"
    with pytest.raises(DataError, match=r"jsonl:1462: output: is empty"):
        list(open_path(path))
    whole = tmp_path / "whole.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    whole.write_text("".join(line for line in lines if json.loads(line)["output"].strip()))
    rows = list(open_path(whole))
    assert len(rows) == 5998
    assert all(isinstance(row, Example) for row in rows)
    assert sum("\n\nInput:\n" in row.prompt for row in rows) > 2000
