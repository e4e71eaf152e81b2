"""Bad input: one line that says what, where and the fix; exit code 2; no model is loaded."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

GOOD = '{"example_id": "a", "prompt": "w1 w2", "completion": " yes"}\n'
OTHER = '{"example_id": "b", "prompt": "w3", "completion": " no"}\n'
BAD_DATA = {
    "malformed": (GOOD + '{"prompt": "w1", "compl', r"bad.jsonl:2: not JSON"),
    "a list": (GOOD + "[1, 2]", r"bad.jsonl:2: expected a JSON object"),
    "a missing column": (GOOD + '{"prompt": "w1"}', r"bad.jsonl:2: column 'completion' is missing"),
    "a number as prompt": ('{"prompt": 1, "completion": "b"}', r"bad.jsonl:1: prompt: expected a"),
    "duplicate ids": (GOOD + GOOD, r"bad.jsonl:2: id 'a' already stands at .*bad.jsonl:1"),
    "an empty prompt": (
        GOOD + '{"prompt": " ", "completion": " no"}',
        r"bad.jsonl:2: prompt: is empty",
    ),
    "an empty completion": (
        GOOD + '{"prompt": "w1", "completion": ""}',
        r"bad.jsonl:2: completion: is empty",
    ),
    "invalid UTF-8": (
        GOOD.encode() + b'{"prompt": "caf\xe9", "completion": " no"}',
        r"bad.jsonl:2: invalid UTF-8",
    ),
    "no rows": ("\n", r"bad.jsonl: no rows"),
    "a missing file": (None, r"bad.jsonl: no such file"),
}


@pytest.fixture(autouse=True)
def _no_model_is_loaded(monkeypatch):
    from atlantis.evaluation import stage as evaluation
    from atlantis.scoring import backends as scoring
    from atlantis.training import building as training

    def refuse(*_, **__):
        raise AssertionError("a model was loaded before the input was checked")

    for stage in (evaluation, scoring, training):
        monkeypatch.setattr(stage, "load_model", refuse)


@pytest.fixture
def refused(atlantis, tmp_path):
    """Runs a command that must be refused, and returns its one line."""

    def run(*arguments: object) -> str:
        done = atlantis(*arguments)
        assert (done.code, done.out, len(done.err)) == (2, [], 1), done
        assert done.err[0].startswith("error: ")
        left = {path.name for path in tmp_path.rglob("out*") if path.is_file()}
        assert left == set()
        return done.err[0]

    return run


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text(GOOD + OTHER)
    return path


def command(name: str, data: Path, model: object, out: Path) -> tuple[object, ...]:
    files = (data,) if name == "score" else ("--data", data)
    return (name, *files, "--model", model, "--out", out)


@pytest.mark.parametrize("name", ["score", "train", "evaluate"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_with_file_and_line(refused, tiny_models, tmp_path, name, case):
    content, message = BAD_DATA[case]
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(*command(name, path, tiny_models / "small", tmp_path / "out"))
    assert re.search(message, line), line


def without_weights(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()


def without_tokenizer(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    (target / "tokenizer.json").unlink()


def encoder_decoder(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    (target / "config.json").write_text('{"model_type": "t5"}')


def not_a_model(source: Path, target: Path) -> None:
    target.mkdir()


def broken_config(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    (target / "config.json").write_text("{")


def nothing(source: Path, target: Path) -> None:
    pass


@pytest.mark.parametrize("name", ["score", "train", "evaluate"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "model: no such folder"),
        (not_a_model, "not a model, it has no config.json"),
        (without_weights, "it has no *.safetensors weights"),
        (without_tokenizer, "it has no tokenizer"),
        (encoder_decoder, "names no decoder_start_token_id"),
        (broken_config, "is not a valid JSON file"),
    ],
)
def test_a_path_that_is_no_usable_model_is_refused(
    refused, tiny_models, tmp_path, data, name, make, message
):
    make(tiny_models / "small", tmp_path / "model")
    line = refused(*command(name, data, tmp_path / "model", tmp_path / "out"))
    assert str(tmp_path / "model") in line
    assert message in line


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_refused(refused, data, tmp_path):
    line = refused(*command("score", data, "models/that/is/none", tmp_path / "out"))
    assert "models/that/is/none: neither a folder with a model nor a model on the Hub" in line


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("score", ("--dtype", "int8"), "dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
        ("score", ("--device", "banana"), "device: choose auto, cpu, cuda"),
        ("score", ("--device", "cuda:99"), "device cuda:99: no such GPU here"),
        ("train", ("--learning-rate", -1), "learning_rate: Input should be greater than 0"),
        ("train", ("--learning-rate", "nan"), "learning_rate: Input should be a finite number"),
        ("train", ("--loss", "mse"), "loss: unknown 'mse'; choose sft, sft_kl, dft"),
        ("train", ("--lora-alpha", 4), "--lora-alpha has no effect without --lora-r"),
        ("train", ("--lora-r", 0), "lora.r: Input should be greater than or equal to 1"),
        ("evaluate", ("--num-bootstrap", 1), "num_bootstrap: Input should be greater than or"),
        ("evaluate", ("--negative-label", "none"), "'none' is no label; there are no, yes"),
        ("evaluate", ("--labels", "none.txt"), "none.txt: no such file"),
    ],
)
def test_a_wrong_option_is_named(refused, tiny_models, data, tmp_path, name, options, message):
    line = refused(*command(name, data, tiny_models / "small", tmp_path / "out"), *options)
    assert message in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a=x", "y"), "--model y: with several models, write NAME=MODEL for each"),
        (("a=x", "a=y"), "--model a=y: the name 'a' stands there twice"),
        (("a=x", "=y"), "--model =y: with several models"),
        (("a/b=x", "c=y"), "model name 'a/b': use letters"),
    ],
)
def test_a_model_name_that_is_missing_wrong_or_there_twice_is_named(
    refused, data, tmp_path, given, message
):
    named = [f"--model={text}" for text in given]
    assert message in refused("score", data, *named, "--out", tmp_path / "out")


def test_a_label_that_is_not_in_the_set_is_named_with_its_row(refused, tiny_models, data, tmp_path):
    (tmp_path / "labels.txt").write_text("yess\nnever\n")
    files = command("evaluate", data, tiny_models / "small", tmp_path / "out")
    line = refused(*files, "--labels", tmp_path / "labels.txt")
    assert "good.jsonl: row 'a' has the unknown label 'yes'" in line
    assert "did you mean 'yess'?" in line


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([f" answer {i}" for i in range(201)], "201 distinct labels, over 200"),
        ([" yes", " yes"], "'yes' is the only label"),
        ([" yes", " no", "no"], "row 'r2' has other whitespace around its label than row 'r0'"),
    ],
    ids=["free text", "one label", "whitespace"],
)
def test_rows_that_are_no_classification_task_are_refused(
    refused, tiny_models, tmp_path, completions, message
):
    rows = [
        {"example_id": f"r{i}", "prompt": f"w{i}", "completion": completion}
        for i, completion in enumerate(completions)
    ]
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert message in refused(*command("evaluate", path, tiny_models / "small", tmp_path / "out"))


def write_weights(folder: Path, weights: dict[str, object], **diagnostics: object) -> Path:
    rows = [
        {"example_id": name, "status": "ok", "log_weight": 0.0, "weight": weight}
        for name, weight in weights.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "w.parquet")
    (folder / "w.json").write_text(json.dumps(diagnostics))
    return folder / "w.parquet"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "b": -0.5}, "weight -0.5 of example 'b'"),
        ({"a": 1.0, "b": float("nan")}, "weight nan of example 'b'"),
        ({"a": 1.0, "b": float("inf")}, "weight inf of example 'b'"),
        ({"a": 1.0, "b": None}, "weight None of example 'b'"),
        ({"a": 0.0, "b": 0.0}, "the weights sum to zero"),
        ({"a": "heavy", "b": "light"}, "a column has another type"),
        ({"a": 1.0}, "example 'b' has no weight (1 of 2 have none)"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "1 ids such as 'c' are not in the data"),
    ],
)
def test_unusable_weights_are_refused(refused, tiny_models, data, tmp_path, weights, message):
    path = write_weights(tmp_path, weights)
    files = command("train", data, tiny_models / "small", tmp_path / "out")
    line = refused(*files, "--weights", path)
    assert message in line
    assert str(path) in line


def test_a_row_with_two_weights_is_refused(refused, tiny_models, data, tmp_path):
    path = write_weights(tmp_path, {"a": 1.0, "b": 1.0})
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(1)]), path)
    files = command("train", data, tiny_models / "small", tmp_path / "out")
    assert "w.parquet: example 'b' stands there 2 times" in refused(*files, "--weights", path)


def test_weights_made_from_other_data_are_refused(refused, tiny_models, data, tmp_path):
    path = write_weights(tmp_path, {"a": 1.0, "b": 1.0}, rendered_text="0" * 64)
    files = command("train", data, tiny_models / "small", tmp_path / "out")
    assert "w.parquet: made from other data" in refused(*files, "--weights", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "w.parquet: no such file"),
        (b"PAR1 but no more", "w.parquet: not a readable Parquet file"),
        (pa.table({"example_id": ["a", "b"]}), "w.parquet: no column 'status'"),
    ],
    ids=["missing", "damaged", "other columns"],
)
def test_a_file_that_holds_no_weights_is_refused(
    refused, tiny_models, data, tmp_path, content, message
):
    path = tmp_path / "w.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)
    files = command("train", data, tiny_models / "small", tmp_path / "out")
    assert message in refused(*files, "--weights", path)


@pytest.fixture(scope="module")
def stores(tiny_models, tmp_path_factory) -> Path:
    """Complete score stores of two models over the same rows, and of one over others."""
    from atlantis import score

    folder = tmp_path_factory.mktemp("stores")
    (folder / "rows.jsonl").write_text(GOOD + OTHER)
    (folder / "others.jsonl").write_text(GOOD)
    for name, rows in (("large", "rows"), ("small", "rows"), ("others", "others")):
        model = tiny_models / ("small" if name == "others" else name)
        score(folder / f"{rows}.jsonl", model=str(model), out=folder / name)
    return folder


def test_a_store_of_another_model_is_not_gone_on_with(atlantis, stores, tiny_models):
    before = (stores / "large" / "manifest.json").read_bytes()
    done = atlantis(
        *command("score", stores / "rows.jsonl", tiny_models / "small", stores / "large")
    )
    assert (done.code, done.out, len(done.err)) == (2, [], 1)
    assert "large was made with model = " in done.err[0]
    assert "choose another folder or delete this one" in done.err[0]
    assert (stores / "large" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("change", [("--max-length", 10), ("--score-end-of-turn",)])
def test_a_store_made_with_other_settings_is_not_gone_on_with(
    atlantis, stores, tiny_models, change
):
    files = command("score", stores / "rows.jsonl", tiny_models / "large", stores / "large")
    done = atlantis(*files, *change)
    assert (done.code, len(done.err)) == (2, 1)
    assert "large was made with scoring = " in done.err[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--small", "small"), "scheme 'influence' needs scores of the reference model"),
        ((), "scheme 'influence' needs scores of the reference model"),
        (("--scheme", "uniform"), "no scores given"),
        (("--reference", "nowhere", "--small", "small"), "nowhere is not a score store"),
        (
            ("--reference", "others", "--small", "small"),
            "scores differ in source: score both over the same",
        ),
        (("--reference", "large", "--small", "small", "--scheme", "influense"), "did you mean"),
        (("--scheme", "{kind: custom, small: 0}", "--small", "small"), "coefficient"),
        (("--scheme", "{kind: [", "--small", "small"), "not valid YAML"),
        (("--scheme", "uniform", "--small", "small", "--alpha", 1), "alpha has no effect on"),
        (
            ("--reference", "large", "--small", "small", "--kappa", "inf"),
            "kappa: Input should be a",
        ),
        (("--reference", "large", "--small", "small", "--clip-factor", 0), "clip.around_median"),
        (
            ("--reference", "large", "--small", "small", "--normalise-within", "label"),
            "needs the examples' labels",
        ),
        (("--reference", "large", "--small", "small", "--normalise-for", "rows"), "'rows': choose"),
        (
            ("--reference", "large", "--small", "small", "--data", "others.jsonl"),
            "holds scores of other data than",
        ),
        (
            (
                *("--reference", "large", "--small", "small", "--scheme"),
                "{kind: drop_lowest, fraction: 0.9}",
            ),
            "all weights are zero",
        ),
    ],
)
def test_scores_that_cannot_be_weighed_are_refused(
    refused, stores, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(stores)
    assert message in refused("weigh", *options, "--out", tmp_path / "out.parquet")


def test_an_incomplete_store_is_refused(refused, stores, tmp_path):
    shutil.copytree(stores / "small", tmp_path / "half")
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    (tmp_path / "half" / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    files = ("--reference", stores / "large", "--small", tmp_path / "half")
    line = refused("weigh", *files, "--out", tmp_path / "out.parquet")
    assert "half is not a complete score store; run the scoring command again" in line


def test_a_weights_file_needs_its_own_suffix(refused, stores, tmp_path):
    line = refused("weigh", "--small", stores / "small", "--out", tmp_path / "w.json")
    assert "name a file that ends in .parquet" in line


def test_a_folder_with_other_files_is_not_overwritten(atlantis, tiny_models, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    for name in ("train", "evaluate"):
        done = atlantis(*command(name, data, tiny_models / "small", tmp_path / "mine"))
        assert (done.code, len(done.err)) == (2, 1)
        assert "mine holds other files; choose an empty folder" in done.err[0]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_file_where_a_folder_is_wanted_is_refused(refused, tiny_models, data, tmp_path):
    (tmp_path / "file").touch()
    line = refused(*command("score", data, tiny_models / "small", tmp_path / "file"))
    assert str(tmp_path / "file") in line


RECIPE = {
    "name": "tiny",
    "data": {
        "train": {"format": "prompt_completion", "path": "good.jsonl"},
        "test": {"format": "prompt_completion", "path": "good.jsonl"},
    },
    "reference": {"model": "/no/such/reference"},
    "models": {"large": "/no/such/large", "small": "/no/such/small"},
    "arms": {"sft": {}, "atlantis": {"weights": "influence"}},
    "control": None,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "training.learning_rat=1",
            "unknown key 'training.learning_rat'; did you mean 'learning_r",
        ),
        ("seed=1", "unknown key 'seed'; did you mean 'seeds'?"),
        ("learning_rate=1", "unknown key 'learning_rate'; it belongs to another section"),
        ("training.epochs=many", "training.epochs: Input should be a valid number"),
        ("training.epochs=[1]", "training.epochs: Input should be a valid number"),
        ("seeds=[0, 0]", "has a seed twice"),
        ("baseline=plain", "baseline: 'plain' is no arm; there are sft, atlantis"),
        ("control=shuffled", "control: 'shuffled' is no arm"),
        ("headline=ours", "headline: 'ours' is no arm"),
        ("arms.extra={rows: train+trusted}", "extra needs trusted rows: give data.trusted"),
        ("arms.atlantis.weights=influense", "unknown 'influense'; did you mean 'influence'?"),
        ("data.test.format=csv", "data.test.format: Input should be 'semeval', 'conll04'"),
        ("data.train.path=gone.jsonl", "gone.jsonl: no such file"),
        ("data.negative_label=none", "negative_label 'none' never occurs; labels are no, yes"),
        ("name=a/b", "name: String should match pattern"),
        ("training", "--set training: write key.subkey=value"),
        ("=1", "--set =1: write key.subkey=value"),
        ("name.x=1", "'name' holds a value, not settings"),
        ("training={", "the value is not valid YAML"),
        ("name=again", "/no/such/large: no such folder"),
    ],
)
def test_a_wrong_setting_of_a_recipe_is_named(
    refused, data, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
    line = refused("run", "r.yaml", "--set", change, "--out", tmp_path / "out")
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "r.yaml: neither a recipe file nor a built-in one (conll04, "),
        ("a: [1\nb: 2", "r.yaml: not valid YAML"),
        ("just words", "r.yaml: a recipe is a mapping of settings"),
        ("", "r.yaml: a recipe is a mapping of settings"),
        (b"name: caf\xe9", "r.yaml: not valid YAML"),
        ("name: x", "r.yaml: models: Field required"),
    ],
    ids=["missing", "syntax", "text", "empty", "latin-1", "incomplete"],
)
def test_what_is_no_recipe_is_refused(refused, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "r.yaml").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    for name in ("run", "report"):
        assert message in refused(name, "r.yaml")


def test_an_unknown_label_of_a_semeval_file_is_named_with_its_line(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = '1\t"The <e1>box</e1> of <e2>tea</e2>."\nCause Effect!\n\n'
    (tmp_path / "rows.txt").write_text(rows)
    split = {"format": "semeval", "path": "rows.txt"}
    settings = RECIPE | {"data": {"train": split, "test": split, "prompt": "{text}"}}
    (tmp_path / "r.yaml").write_text(json.dumps(settings))
    line = refused("run", "r.yaml", "--out", tmp_path / "out")
    assert "rows.txt:2: unknown label 'Cause Effect!'" in line


def test_a_real_process_says_one_line_and_exits_two(tiny_models, tmp_path):
    (tmp_path / "bad.jsonl").write_text(GOOD + "{")
    arguments = ("score", "bad.jsonl", "--model", tiny_models / "small", "--out", "out")
    program = Path(sys.executable).with_name("atlantis")
    done = subprocess.run(
        [program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: bad.jsonl:2: not JSON")
    assert not (tmp_path / "out").exists()
