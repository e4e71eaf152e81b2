"""Artifacts of earlier stages: what is read, and damaged files refused by name."""

import numpy as np
import pyarrow as pa
import pytest

from atlantis.disk import write_json, write_table
from atlantis.errors import DataError, StoreError
from atlantis.report.artifacts import read_json, read_scores, read_train, read_weights

SCORES = {
    "example_id": ["b", "a", "c"],
    "status": ["ok", "too_long", "ok"],
    "num_tokens": [3, None, 4],
    "sequence_logprob": [-1.5, None, -2.0],
    "token_logprobs": [[-0.5] * 3, None, [-0.5] * 4],
}
TRAIN = {"example_id": ["a", "b"], "prompt": ["p", "q"], "label": ["x", "y"]}
WEIGHTS = {
    "example_id": ["a", "b"],
    "status": ["ok", "too_long"],
    "log_weight": [0.5, None],
    "weight": [1.6, None],
}


def write(path, columns):
    write_table(path, pa.table(columns))
    return path


def test_scores_are_put_in_the_order_of_the_training_rows(tmp_path):
    write(tmp_path / "part-00000.parquet", {name: v[:2] for name, v in SCORES.items()})
    write(tmp_path / "part-00001.parquet", {name: v[2:] for name, v in SCORES.items()})
    found = read_scores(tmp_path, ["a", "b", "c", "unknown"])
    np.testing.assert_array_equal(found.sequence_logprobs, [np.nan, -1.5, -2.0, np.nan])
    np.testing.assert_array_equal(found.num_tokens, [np.nan, 3, 4, np.nan])


def test_optional_columns_of_the_training_rows_may_be_absent(tmp_path):
    found = read_train(write(tmp_path / "train.parquet", TRAIN))
    assert found.texts == ("p", "q")
    assert found.gold_labels == (None, None)
    full = TRAIN | {"text": ["s", None], "gold_label": ["x", None]}
    found = read_train(write(tmp_path / "train.parquet", full))
    assert found.texts == ("s", "q")
    assert found.gold_labels == ("x", None)


def test_weights_are_put_in_the_order_of_the_training_rows(tmp_path):
    path = write(tmp_path / "weights.parquet", WEIGHTS)
    write_json(path.with_suffix(".json"), {"kappa": 1.0})
    found = read_weights(path, ["b", "x", "a"])
    assert found.status == ("too_long", "not weighted", "ok")
    np.testing.assert_array_equal(found.weights, [np.nan, np.nan, 1.6])
    assert found.diagnostics == {"kappa": 1.0}


def cut(content):
    return content[:-20]


def flip(content):
    middle = content.index(b"(\xb5/\xfd") + 12  # inside the first zstd frame
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize(
    ("columns", "read"),
    [
        (TRAIN, read_train),
        (WEIGHTS, lambda path: read_weights(path, ["a"])),
        (SCORES, lambda path: read_scores(path.parent, ["a"])),
    ],
    ids=["train", "weights", "scores"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, columns, read, damage):
    path = write(tmp_path / "part-00000.parquet", columns)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=r"part-00000\.parquet: not a readable Parquet file"):
        read(path)


def test_a_missing_file_or_column_is_refused_by_name(tmp_path):
    with pytest.raises(StoreError, match=r"train\.parquet: no such file"):
        read_train(tmp_path / "train.parquet")
    path = write(tmp_path / "part-00000.parquet", {"example_id": ["a"]})
    with pytest.raises(DataError, match="column 'prompt' is missing; found example_id"):
        read_train(path)
    with pytest.raises(StoreError, match=r"part-00000\.parquet: .*status"):
        read_scores(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": Infinity}', "Infinity is no JSON number"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"{", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "check.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(path)
