"""`atlantis export`: weights of `atlantis weigh` to files for other trainers."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

NUM_ROWS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ragged rows, the last too long to be scored."""
    folder = tmp_path_factory.mktemp("export")
    draw = random.Random(1)
    lines = []
    for index in range(NUM_ROWS):
        num_words = 50 if index == NUM_ROWS - 1 else draw.randrange(2, 9)
        prompt = " ".join(f"w{draw.randrange(40)}" for _ in range(num_words))
        lines.append({"example_id": f"r{index}", "prompt": prompt, "completion": " yes"})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def weighed(folder, tiny_models, atlantis) -> Path:
    """Scored and weighed by the first test, found again by the others."""
    data, weights = folder / "train.jsonl", folder / "weights.parquet"
    if weights.exists():
        return folder
    for role in ("large", "small"):
        where = ("--model", tiny_models / role, "--out", folder / role, "--max-length", 40)
        assert atlantis("score", data, *where).code == 0
    stores = ("--reference", folder / "large", "--small", folder / "small")
    done = atlantis("weigh", *stores, "--min-ess-fraction", 0.5, "--out", weights)
    assert done.code == 0, done.err
    return folder


def arguments(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    files = ("--data", folder / "train.jsonl", "--weights", folder / "weights.parquet")
    return ("export", *files, "--out", out, *more)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_weights_stand_beside_their_rows(weighed, tmp_path, atlantis):
    out = tmp_path / "out.jsonl"
    done = atlantis(*arguments(weighed, out))
    assert done.code == 0
    assert done.out == [f"{out}: 23 rows for trl, 1 left out (too_long)"]
    assert any("WeightedSFTTrainer" in line for line in done.err)
    rows = lines_of(weighed / "train.jsonl")
    table = pq.read_table(weighed / "weights.parquet")
    weights = dict(zip(table["example_id"].to_pylist(), table["weight"].to_pylist(), strict=True))
    assert lines_of(out) == [row | {"weight": weights[row["example_id"]]} for row in rows[:-1]]


@pytest.mark.parametrize("name", ["trl", "ms-swift", "llama-factory", "resample"])
def test_json_is_one_line(weighed, tmp_path, atlantis, name):
    out = tmp_path / "out.jsonl"
    done = atlantis(*arguments(weighed, out, "--format", name, "--json"))
    assert done.code == 0
    (line,) = done.out
    found = json.loads(line)
    distinct = found.pop("num_distinct")
    assert found == {
        "out": str(out),
        "format": name,
        "num_rows": 23,
        "left_out": {"too_long": 1},
    }
    assert distinct < 23 if name == "resample" else distinct == 23


def test_resampled_rows_are_counted_and_can_be_trained_on(weighed, tmp_path, tiny_models, atlantis):
    out = tmp_path / "out.jsonl"
    done = atlantis(*arguments(weighed, out, "--format", "resample", "--rows", 40, "--seed", 2))
    ids = [line["example_id"] for line in lines_of(out)]
    assert len(set(ids)) == 40
    distinct = len({name.split("#")[0] for name in ids})
    assert done.out == [f"{out}: 40 rows for resample, {distinct} distinct, 1 left out (too_long)"]
    model = ("--model", tiny_models / "large", "--out", tmp_path / "trained")
    assert atlantis("train", "--data", out, *model, "--epochs", 1).code == 0


def refused(atlantis, *given: object) -> str:
    done = atlantis(*given)
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done
    return done.err[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "axolotl"), "choose trl, ms-swift, llama-factory or resample"),
        (("--rows", 5), "--rows has no effect on --format trl"),
        (("--format", "ms-swift", "--seed", 5), "--seed has no effect on --format ms-swift"),
        (("--out", "out.parquet"), "ends in .jsonl"),
        (("--weights", "none.parquet"), "none.parquet: no such file"),
        (("--data", "none.jsonl"), "none.jsonl: no such file"),
    ],
)
def test_bad_options_are_one_line(weighed, tmp_path, atlantis, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(atlantis, *arguments(weighed, tmp_path / "out.jsonl", *options))
    assert list(tmp_path.iterdir()) == []


def test_the_data_are_not_overwritten(weighed, atlantis):
    before = (weighed / "train.jsonl").read_bytes()
    line = refused(atlantis, *arguments(weighed, weighed / "train.jsonl"))
    assert "is the data itself" in line
    assert (weighed / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "made from other data"),
        (lambda rows: [*rows, {**rows[0], "example_id": "new"}], "made from other data"),
        (lambda rows: [{**rows[0], "completion": " no"}, *rows[1:]], "made from other data"),
        (lambda rows: [rows[0], *rows], "already stands at"),
    ],
    ids=["missing", "extra", "changed", "twice"],
)
def test_weights_of_other_data_are_refused(weighed, tmp_path, atlantis, change, message):
    other = tmp_path / "other.jsonl"
    rows = change(lines_of(weighed / "train.jsonl"))
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    assert message in refused(atlantis, *arguments(weighed, out, "--data", other))
    assert not out.exists()


def test_ids_decide_for_weights_without_diagnostics(weighed, tmp_path, atlantis):
    table = pq.read_table(weighed / "weights.parquet")
    bare, out = tmp_path / "bare.parquet", tmp_path / "out.jsonl"
    pq.write_table(table, bare)
    done = atlantis(*arguments(weighed, out, "--weights", bare))
    assert done.code == 0
    assert any("cannot tell which data" in line for line in done.err)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), bare)
    assert "2 times" in refused(atlantis, *arguments(weighed, out, "--weights", bare))
    pq.write_table(table.slice(1), bare)
    assert "has no weight" in refused(atlantis, *arguments(weighed, out, "--weights", bare))
    fewer = tmp_path / "fewer.jsonl"
    rows = lines_of(weighed / "train.jsonl")[1:]
    fewer.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(table, bare)
    given = ("--weights", bare, "--data", fewer)
    assert "are not in the data" in refused(atlantis, *arguments(weighed, out, *given))


def test_weights_that_leave_almost_no_data_need_force(tmp_path, atlantis):
    names = [f"r{index}" for index in range(200)]
    rows = [{"example_id": name, "prompt": name, "completion": " yes"} for name in names]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = [1e6] + [1.0] * 199
    columns = {"example_id": names, "status": ["ok"] * 200, "weight": values, "log_weight": values}
    pq.write_table(pa.table(columns), tmp_path / "weights.parquet")
    given = arguments(tmp_path, tmp_path / "out.jsonl", "--format", "resample", "--json")
    assert "effective sample size" in refused(atlantis, *given)
    done = atlantis(*given, "--force")
    assert json.loads(done.out[0])["num_distinct"] <= 2
