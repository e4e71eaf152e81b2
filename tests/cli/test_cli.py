"""The commands on a tiny model, end to end, and the files that they promise."""

import inspect
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import atlantis as package
from atlantis.cli.train import train
from atlantis.errors import ConfigError, DataError
from atlantis.training.config import LoraSettings, TrainingConfig

LABELS = ("yes", "no", "maybe")
TRAINING = ("--learning-rate", 0.01, "--epochs", 1, "--batch-size", 8)


def write_rows(path: Path, num_rows: int, *, seed: int) -> Path:
    """Ragged prompts; the label is decided by the first word."""
    draw = random.Random(seed)
    lines = []
    for index in range(num_rows):
        words = [draw.randrange(40) for _ in range(draw.randrange(2, 9))]
        label = LABELS[words[0] % 3]
        prompt = " ".join(f"w{word}" for word in words)
        lines.append({"example_id": f"r{index}", "prompt": prompt, "completion": f" {label}"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_rows(folder / "train.jsonl", 40, seed=1)
    write_rows(folder / "test.jsonl", 24, seed=2)
    return folder


@pytest.fixture
def chain(workspace, tiny_models, atlantis) -> Path:
    """score, weigh, train, evaluate: made by the first test, found again by the others."""
    data = workspace / "train.jsonl"
    for role in ("large", "small"):
        model = tiny_models / role
        done = atlantis("score", data, "--model", model, "--out", workspace / role, "--json")
        assert done.code == 0, done.err
    # The large model stands in for a tuned small one: any other opinion makes uneven weights.
    stores = ("--reference", workspace / "large", "--small", workspace / "small")
    for name, options in (("influence", stores), ("uniform", stores[2:])):
        weights = workspace / f"{name}.parquet"
        done = atlantis("weigh", "--scheme", name, *options, "--out", weights)
        assert done.code == 0, done.err
    files = ("--data", data, "--model", tiny_models / "large")
    weighted = ("--weights", workspace / "influence.parquet")
    done = atlantis("train", *files, *weighted, "--out", workspace / "trained", *TRAINING)
    assert done.code == 0, done.err
    test = ("--data", workspace / "test.jsonl", "--model", workspace / "trained")
    done = atlantis("evaluate", *test, "--out", workspace / "evaluated")
    assert done.code == 0, done.err
    return workspace


def schema_of(path: Path) -> dict[str, pa.DataType]:
    schema = pq.read_schema(path)
    return dict(zip(schema.names, schema.types, strict=True))


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file but the lock."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_score_store_holds_the_promised_columns_and_a_manifest(chain):
    (part,) = (chain / "large").glob("part-*.parquet")
    columns = schema_of(part)
    assert columns.pop("token_logprobs").value_type in (pa.float32(), pa.float64())
    assert columns == {
        "example_id": pa.string(),
        "status": pa.string(),
        "num_tokens": pa.int32(),
        "num_bytes": pa.int32(),
        "sequence_logprob": pa.float64(),
        "num_trained_tokens": pa.int32(),
    }
    table = pq.read_table(part)
    assert sorted(table["example_id"].to_pylist()) == sorted(f"r{i}" for i in range(40))
    assert set(table["status"].to_pylist()) == {"ok"}
    manifest = json.loads((chain / "large" / "manifest.json").read_text())
    assert manifest["complete"]
    assert list(manifest["parts"]) == [part.name]
    assert {"model", "rendered_text", "scoring", "loading"} <= manifest["fingerprint"].keys()


def test_a_weights_file_holds_the_promised_columns_and_its_diagnostics(chain):
    path = chain / "influence.parquet"
    assert schema_of(path) == {
        "example_id": pa.string(),
        "status": pa.string(),
        "log_weight": pa.float64(),
        "weight": pa.float64(),
    }
    table = pq.read_table(path)
    weights = np.array(table["weight"].to_pylist())
    np.testing.assert_allclose(weights, np.exp(table["log_weight"].to_pylist()))
    np.testing.assert_allclose(weights.mean(), 1.0)  # all completions have the same length here
    diagnostics = json.loads(path.with_suffix(".json").read_text())
    assert diagnostics["num_examples"] == 40
    expected = weights.sum() ** 2 / np.square(weights).sum()
    np.testing.assert_allclose(diagnostics["effective_sample_size"], expected)
    scores = json.loads((chain / "large" / "manifest.json").read_text())["fingerprint"]
    assert diagnostics["rendered_text"] == scores["rendered_text"]


def test_a_checkpoint_is_a_hugging_face_folder_with_run_json(chain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(chain / "trained")
    assert AutoTokenizer.from_pretrained(chain / "trained").eos_token == "<eos>"
    run = json.loads((chain / "trained" / "run.json").read_text())
    assert (run["num_rows"], run["num_steps"], run["left_out"]) == (40, 5, {})
    assert run["config"]["learning_rate"] == 0.01
    assert not (chain / "trained" / ".lock").exists()
    assert not (chain / "trained.partial").exists()


def test_metrics_have_n_and_intervals_and_predictions_are_labels(chain):
    metrics = json.loads((chain / "evaluated" / "metrics.json").read_text())
    table = pq.read_table(chain / "evaluated" / "predictions.parquet")
    assert table.column_names == ["example_id", "gold", "predicted", "generated", "generated_text"]
    assert set(table["predicted"].to_pylist()) <= set(LABELS)
    right = np.mean([g == p for g, p in zip(table["gold"], table["predicted"], strict=True)])
    assert metrics["n"] == 24
    assert metrics["predicted"]["accuracy"] == pytest.approx(right)
    for kind in ("predicted", "generated"):
        for name, interval in metrics["intervals"][kind].items():
            assert interval["n"] == 24
            assert interval["mean"] == pytest.approx(metrics[kind][name])
            assert interval["low"] <= interval["mean"] <= interval["high"]


def test_a_rerun_of_everything_changes_no_file(chain, tiny_models, atlantis):
    folders = ("large", "trained", "evaluated")
    before = {name: files_of(chain / name) for name in folders}
    data, large = chain / "train.jsonl", tiny_models / "large"
    atlantis("score", data, "--model", large, "--out", chain / "large")
    weighted = ("--weights", chain / "influence.parquet", "--out", chain / "trained")
    trained = atlantis("train", "--data", data, "--model", large, *weighted, *TRAINING, "--json")
    test = ("--data", chain / "test.jsonl", "--model", chain / "trained")
    tested = atlantis("evaluate", *test, "--out", chain / "evaluated", "--json")
    assert [json.loads(done.out[0])["cached"] for done in (trained, tested)] == [True, True]
    assert {name: files_of(chain / name) for name in folders} == before


def test_uniform_weights_train_the_same_model_as_no_weights(chain, tiny_models, atlantis, tmp_path):
    files = ("--data", chain / "train.jsonl", "--model", tiny_models / "small", *TRAINING)
    uniform = ("--weights", chain / "uniform.parquet")
    assert atlantis("train", *files, "--out", tmp_path / "plain").code == 0
    assert atlantis("train", *files, *uniform, "--out", tmp_path / "uniform").code == 0
    plain, ones = (
        load_file(tmp_path / name / "model.safetensors") for name in ("plain", "uniform")
    )
    assert plain.keys() == ones.keys()
    assert all(np.array_equal(plain[name], ones[name]) for name in plain)


def test_influence_weights_train_another_model(chain, tiny_models, atlantis, tmp_path):
    files = ("--data", chain / "train.jsonl", "--model", tiny_models / "large", *TRAINING)
    assert atlantis("train", *files, "--out", tmp_path / "plain").code == 0
    name = "model.embed_tokens.weight"
    plain, weighted = (
        load_file(folder / "model.safetensors")[name]
        for folder in (tmp_path / "plain", chain / "trained")
    )
    assert np.abs(plain - weighted).max() > 1e-4


def test_rows_without_a_weight_are_left_out_and_counted(chain, tiny_models, atlantis, tmp_path):
    table = pq.read_table(chain / "influence.parquet").to_pylist()
    table[3] |= {"status": "too_long", "weight": None, "log_weight": None}
    schema = pq.read_schema(chain / "influence.parquet")
    pq.write_table(pa.Table.from_pylist(table, schema=schema), tmp_path / "w.parquet")
    shutil.copy(chain / "influence.json", tmp_path / "w.json")
    files = ("--data", chain / "train.jsonl", "--model", tiny_models / "small")
    weighted = ("--weights", tmp_path / "w.parquet", "--out", tmp_path / "out")
    done = atlantis("train", *files, *weighted, *TRAINING, "--json")
    assert json.loads(done.out[0])["left_out"] == {"too_long": 1}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["num_rows"], run["left_out"]) == (39, {"too_long": 1})


def test_a_weights_file_without_diagnostics_trains_with_a_warning(
    chain, tiny_models, atlantis, tmp_path
):
    shutil.copy(chain / "influence.parquet", tmp_path / "w.parquet")
    files = ("--data", chain / "train.jsonl", "--model", tiny_models / "small")
    weighted = ("--weights", tmp_path / "w.parquet", "--out", tmp_path / "out")
    done = atlantis("train", *files, *weighted, *TRAINING)
    assert done.code == 0
    assert any("cannot tell which data" in line for line in done.err)


def test_weights_of_another_mean_than_the_loss_averages_give_a_warning(
    chain, tiny_models, atlantis, tmp_path
):
    files = ("--data", chain / "train.jsonl", "--model", tiny_models / "small", *TRAINING)
    weighted = ("--weights", chain / "influence.parquet", "--out", tmp_path / "out")
    done = atlantis("train", *files, *weighted, "--loss-normaliser", "example_mean")
    assert done.code == 0
    assert any("weigh with --normalise-for examples" in line for line in done.err)


# peft 0.21 asks transformers for a name that 5.23 has renamed (peft_model.py, _prepare_model).
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_trained_and_merged(chain, tiny_models, atlantis, tmp_path):
    files = ("--data", chain / "train.jsonl", "--model", tiny_models / "small", *TRAINING)
    done = atlantis("train", *files, "--out", tmp_path / "out", "--lora-r", 2, "--lora-alpha", 4)
    assert done.code == 0, done.err
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == load_file(tiny_models / "small" / "model.safetensors").keys()


def test_weights_that_leave_almost_no_data_need_force(chain, tiny_models, atlantis, tmp_path):
    rows = write_rows(tmp_path / "many.jsonl", 300, seed=3)
    columns = {
        "example_id": [f"r{i}" for i in range(300)],
        "status": ["ok"] * 300,
        "log_weight": [0.0] + [-20.0] * 299,
        "weight": [300.0] + [1e-6] * 299,
    }
    pq.write_table(pa.table(columns), tmp_path / "w.parquet")
    files = ("--data", rows, "--model", tiny_models / "small", "--out", tmp_path / "out")
    weighted = ("--weights", tmp_path / "w.parquet", *TRAINING)
    refused = atlantis("train", *files, *weighted)
    assert refused.code == 2
    assert "0.333% of the examples" in refused.err[0]
    assert atlantis("train", *files, *weighted, "--force").code == 0


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("{kind: drop_lowest, of: influence, fraction: 0.25}", ()),
        ("shuffled", ("--alpha", 0)),
        ("report2025", ("--min-ess-fraction", 0.5)),
        ("influence", ("--clip-factor", 2, "--normalise-within", "length_decile")),
        ("influence", ("--normalise-within", "label", "--normalise-for", "examples")),
    ],
)
def test_every_kind_of_scheme_can_be_named(chain, atlantis, tmp_path, scheme, options):
    stores = ("--large", chain / "large", "--reference", chain / "large", "--small")
    files = (*stores, chain / "small", "--data", chain / "train.jsonl")
    out = tmp_path / "w.parquet"
    done = atlantis("weigh", *files, "--scheme", scheme, *options, "--out", out, "--json")
    assert done.code == 0, done.err
    diagnostics = json.loads(done.out[0])["diagnostics"]
    assert set(diagnostics["mean_weight_by_group"]["label"]) == set(LABELS)
    weights = pq.read_table(out)["weight"].to_pylist()
    assert np.mean(weights) == pytest.approx(1.0)
    if "drop_lowest" in scheme:
        assert weights.count(0.0) == 10


def test_labels_can_come_from_a_file(chain, tiny_models, atlantis, tmp_path):
    (tmp_path / "labels.txt").write_text("yes\nno\nmaybe\nw1\n")
    files = ("--data", chain / "test.jsonl", "--model", tiny_models / "small")
    named = ("--labels", tmp_path / "labels.txt", "--negative-label", "no")
    done = atlantis("evaluate", *files, *named, "--no-generate", "--out", tmp_path / "o", "--json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out[0])["metrics"]
    assert list(metrics["intervals"]) == ["predicted"]
    assert {"macro3", "macro4", "accuracy"} == metrics["predicted"].keys()


def test_the_python_functions_do_what_the_commands_do(chain, tiny_models, tmp_path):
    rows = [
        package.Example(row["example_id"], row["prompt"], row["completion"])
        for row in map(json.loads, (chain / "train.jsonl").read_text().splitlines())
    ]
    large = package.score(rows, model=str(tiny_models / "large"), out=tmp_path / "large")
    small = package.score(
        chain / "train.jsonl", model=str(tiny_models / "small"), out=tmp_path / "small"
    )
    assert isinstance(large, package.ScoreStore)
    weights = package.weigh(reference=large, small=small)
    assert isinstance(weights, package.Weights)
    weights.save(tmp_path / "w.parquet")
    assert pq.read_table(tmp_path / "w.parquet") == pq.read_table(chain / "influence.parquet")
    with pytest.raises(DataError, match="'r0' occurs twice"):
        package.score([rows[0], rows[0]], model=str(tiny_models / "small"), out=tmp_path / "none")
    with pytest.raises(ConfigError, match="alpha has no effect on scheme 'uniform'"):
        package.weigh(small=small, scheme="uniform", alpha=0.5)


def test_the_public_names_exist_and_no_others_are_promised():
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert package.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = package.scores


def test_the_options_of_train_are_the_settings_of_training():
    options = {name: p.default for name, p in inspect.signature(train).parameters.items()}
    settings = {name: f.default for name, f in TrainingConfig.model_fields.items()}
    del settings["lora"], settings["report_to"]
    settings["loss"] = settings["loss"].name
    assert {name: options[name] for name in settings} == settings
    assert "report_to" in options
    assert {f"lora_{name}" for name in LoraSettings.model_fields} <= options.keys()


def test_several_models_are_scored_in_one_command(atlantis, workspace, tiny_models, tmp_path):
    data = workspace / "train.jsonl"
    named = [f"--model={name}={tiny_models / name}" for name in ("large", "small")]
    done = atlantis("score", data, *named, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out]
    assert [line["num_examples"] for line in lines] == [40, 40]
    alone = atlantis("score", data, "--model", tiny_models / "small", "--out", tmp_path / "alone")
    assert alone.code == 0
    for path in (tmp_path / "alone").glob("part-*"):
        assert path.read_bytes() == (tmp_path / "out" / "small" / path.name).read_bytes()


@pytest.fixture(scope="module")
def recipe(workspace, tiny_models) -> Path:
    settings = {
        "name": "tiny",
        "seeds": [0],
        "models": str(tiny_models),
        "reference": {"model": str(tiny_models / "large")},
        "data": {
            "root": str(workspace),
            "train": {"format": "prompt_completion", "path": "train.jsonl"},
            "test": {"format": "prompt_completion", "path": "test.jsonl"},
        },
        "training": {"epochs": 0.5, "batch_size": 8},
        "evaluation": {"num_bootstrap": 100},
        "arms": {"sft": {}, "atlantis": {"weights": "influence"}},
        "control": None,
    }
    path = workspace / "tiny.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def test_a_report_is_rebuilt_from_a_finished_run_only(recipe, atlantis, tmp_path):
    out = tmp_path / "run"
    early = atlantis("report", recipe, "--out", out)
    assert (early.code, len(early.err)) == (2, 1)
    assert "stage data-" not in early.err[0]
    assert "stage data is not done" in early.err[0]

    plan = atlantis("run", recipe, "--out", out, "--dry-run", "--json")
    stages = json.loads(plan.out[0])["stages"]
    assert {stage["state"] for stage in stages} == {"to do"}
    assert not out.exists()

    ran = atlantis("run", recipe, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert set(json.loads(ran.out[0])["comparison"]["arms"]) == {"sft", "atlantis"}
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    rebuilt = atlantis("report", recipe, "--out", out)
    assert rebuilt.code == 0, rebuilt.err
    assert rebuilt.out[-1] == f"report: {out / 'report.html'}"
    assert (out / "report.html").read_bytes() == page

    (out / "report.html").unlink()
    again = atlantis("report", out, "--json")  # the folder knows its recipe
    assert again.code == 0, again.err
    assert json.loads(again.out[0])["report"] == str(out / "report.html")
    assert (out / "report.html").read_bytes() == page

    shutil.rmtree(next((out / "stages").glob("evaluate-atlantis-seed0-*")))
    gone = atlantis("report", recipe, "--out", out)
    assert gone.code == 2
    assert "stage evaluate-atlantis-seed0 is not done" in gone.err[0]


def test_recipes_and_doctor_answer_in_words_and_in_json(atlantis):
    assert any(line.startswith("semeval-weak ") for line in atlantis("recipes").out)
    assert "semeval-weak" in json.loads(atlantis("recipes", "--json").out[0])
    assert atlantis("doctor").out[-1] == "ready"
    report = json.loads(atlantis("doctor", "--json").out[0])
    assert report["ok"]
    assert {"python", "torch", "trl", "disk", "memory"} <= {c["name"] for c in report["checks"]}


def test_doctor_fails_where_a_needed_package_is_missing(atlantis, monkeypatch):
    from atlantis.cli import doctor as doctor_command

    module = sys.modules[doctor_command.__module__]
    needs = ["trl<1.0", "not-a-package>=2", 'also-not-one; extra == "psis"']
    monkeypatch.setattr(module.metadata, "requires", lambda _: needs)
    done = atlantis("doctor", "--json")
    assert done.code == 1
    status = {check["name"]: check["status"] for check in json.loads(done.out[0])["checks"]}
    assert (status["trl"], status["not-a-package"]) == ("missing", "missing")


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_is_one_line_and_its_own_exit_code(
    workspace, tiny_models, atlantis, tmp_path, monkeypatch, signum, code
):
    from atlantis.scoring import stage

    monkeypatch.setattr(stage, "run_all", lambda *_, **__: signal.raise_signal(signum))
    files = (workspace / "train.jsonl", "--model", tiny_models / "small", "--out", tmp_path / "s")
    before = signal.getsignal(signum)
    done = atlantis("score", *files)
    assert (done.code, done.out, len(done.err)) == (code, [], 1)
    assert "run the same command to go on" in done.err[0]
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize(
    "arguments", [("score",), ("nothing",), ("weigh", "--kappa", "many"), ("score", "--sed")]
)
def test_usage_errors_exit_two(atlantis, arguments):
    assert atlantis(*arguments).code == 2


@pytest.mark.parametrize(
    "command",
    ["run", "quickstart", "report", "score", "weigh", "train", "evaluate", "recipes", "doctor"],
)
def test_every_command_has_help(atlantis, command):
    done = atlantis(command, "--help")
    assert done.code == 0
    assert any("--json" in line for line in done.out)


def test_help_imports_no_heavy_library():
    heavy = "{'torch', 'transformers', 'trl', 'pyarrow', 'scipy', 'pydantic'}"
    code = (
        "import sys, atlantis.cli as cli; sys.argv = ['atlantis', '--help']\n"
        "try: cli.main()\n"
        f"except SystemExit: print(sorted({heavy} & sys.modules.keys()))"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - begin < 5  # measured: 0.3 s alone, 0.5 s on a busy machine
