"""A weights file joined to a data set by id."""

import logging

import pytest
from datasets import Dataset

from atlantis import join_weights
from atlantis.errors import DataError, WeightError
from atlantis.weighting.weights import Weights


def weights(**by_id):
    values = list(by_id.values())
    status = ["ok" if value is not None else "too_long" for value in values]
    return Weights(list(by_id), status, values, values, {})


def dataset(*ids, **columns):
    return Dataset.from_dict({"example_id": list(ids), "prompt": [f"p{i}" for i in ids]} | columns)


def test_weights_go_to_their_rows_whatever_the_order(tmp_path):
    weights(a=0.5, b=1.5, c=1.0).save(tmp_path / "w.parquet")
    joined = join_weights(dataset("c", "a", "b"), tmp_path / "w.parquet")
    assert joined["prompt"][:] == ["pc", "pa", "pb"]
    assert joined["weight"][:] == [1.0, 0.5, 1.5]


def test_rows_that_could_not_be_scored_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        joined = join_weights(dataset("a", "b", "c"), weights(a=0.5, b=None, c=2.0))
    assert joined["example_id"][:] == ["a", "c"]
    assert "1 rows have no weight and are left out: 1 too_long" in caplog.text


def test_ids_may_stand_in_another_column_and_be_numbers():
    rows = Dataset.from_dict({"row": [2, 1]})
    assert join_weights(rows, weights(**{"1": 0.1, "2": 0.2}), id_column="row")["weight"][:] == [
        0.2,
        0.1,
    ]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (dataset("a"), WeightError, "1 ids such as 'b' are not in the data"),
        (dataset("a", "b", "x"), WeightError, "example 'x' has no weight"),
        (dataset("a", "b", "a"), DataError, "id 'a' stands in column 'example_id' more than once"),
        (dataset("a", "b", weight=[1.0, 1.0]), DataError, "has a column 'weight' already"),
        (Dataset.from_dict({"id": ["a", "b"]}), DataError, "no column 'example_id'"),
    ],
)
def test_what_does_not_fit_is_refused(rows, error, message):
    with pytest.raises(error, match=message):
        join_weights(rows, weights(a=0.5, b=1.5))


def test_weights_that_are_all_missing_are_refused():
    with pytest.raises(WeightError, match="no row has a weight"):
        join_weights(dataset("a"), weights(a=None))
