"""Recipes about maths problems from data to report, with a tiny model that solves some of them."""

import json
import sys

import pytest
import yaml

from atlantis.cli import main
from atlantis.config import MathsRunConfig, load_recipe, validate_recipe
from atlantis.disk import read_table
from atlantis.errors import ConfigError
from atlantis.pipeline import MathsPipeline, pipeline_of
from atlantis.quickstart.make import WordProblemsConfig, make_word_problems
from atlantis.quickstart.pretraining import ModelSize, Pretraining
from atlantis.quickstart.solver import Reading, SolverConfig
from atlantis.recipes import builtin_recipes

TINY = WordProblemsConfig(
    train=24,
    test=6,
    solver=SolverConfig(
        size=ModelSize(hidden=32, feed_forward=64, learning_rate=8e-3),
        reading=Reading(plain=200, guided=200, formal=50, sums=50, expert_sums=50),
        pretraining=Pretraining(epochs=2, label_smoothing=0.005),
    ),
)
CHANGES = [
    "seeds=[0,1]",
    "training={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}",
    "rewriting.max_new_tokens=32",
    "rewriting.self_attempts=2",
    "rewriting.guided_attempts=2",
    "evaluation.max_new_tokens=32",
    "evaluation.num_samples=2",
    "evaluation.num_bootstrap=100",
    "keep_models=none",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems") / "made"
    make_word_problems(folder, config=TINY)
    return folder


@pytest.fixture(scope="module")
def config(made):
    own = [f"data.root={made}", f"model={made / 'model'}"]
    return load_recipe("rewrite-demo", [*own, *CHANGES])


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    pipeline = MathsPipeline(config, out)
    return pipeline, pipeline.run(lambda stage: None)


def test_every_arm_and_the_model_as_it_is_are_compared(finished):
    pipeline, comparison = finished
    found = comparison[comparison["headline"]]
    assert set(found["arms"]) == {"base", "sft", "dft", "dr_sft", "dr_dft"}
    assert found["metric"] == "avg@2"
    assert found["seeds"] == [0, 1]
    rows = read_table(pipeline.evaluated("dr_dft", 1).folder / "problems.parquet").to_pylist()
    mean = sum(row["num_correct"] for row in rows) / 2 / 6
    assert found["arms"]["dr_dft"]["word_problems"]["per_seed"][1] == pytest.approx(mean)


def test_the_report_says_what_was_rewritten(finished):
    pipeline, _ = finished
    document = json.loads((pipeline.out / "report.json").read_text())
    assert set(document["rewriting"]) == {"0", "1"}
    assert sum(document["rewriting"]["0"]["sources"].values()) == 24
    assert document["rewriting"]["0"]["policy_gap"]["before"] < 0
    page = (pipeline.out / "report.html").read_text()
    assert "dr_dft" in page
    assert "from self-alignment" in page
    assert "http://" not in page
    assert "https://" not in page


def test_arms_of_rewritten_rows_train_on_the_plain_prompts(finished):
    pipeline, _ = finished
    rows = pipeline.rewritten(0).folder / "rows.jsonl"
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        assert row["prompt"].startswith("Problem: ")
        assert "Notes:" not in row["prompt"]


def test_a_second_run_does_nothing_and_a_checkpoint_is_not_kept(finished, config):
    pipeline, comparison = finished
    again = MathsPipeline(config, pipeline.out)
    assert {state for _, state in again.plan()} <= {"cached", "unneeded"}
    assert again.run(pytest.fail) == comparison
    assert not any((pipeline.out / "stages").glob("train-*"))


def test_what_the_numbers_depend_on_decides_what_is_done_again(finished, config):
    pipeline, _ = finished

    def redone(**changes):
        other = MathsPipeline(config.model_copy(update=changes), pipeline.out)
        return {stage.name for stage, state in other.plan() if state == "to do"}

    half = config.loading.model_copy(update={"dtype": "bfloat16"})
    assert "evaluate-base-seed0" in redone(loading=half)
    verifier = config.rewriting.verifier
    shorter = config.rewriting.model_copy(update={"max_new_tokens": 16})
    again = redone(rewriting=shorter)
    assert "rewrite-seed0" in again
    assert "evaluate-sft-seed0" not in again
    assert verifier.settings.keys() >= {"grader", "extraction"}


def test_a_recipe_is_of_one_kind_or_the_other(config, made, tmp_path):
    assert isinstance(pipeline_of(config, tmp_path), MathsPipeline)
    assert isinstance(config, MathsRunConfig)
    settings = config.model_dump(mode="json")
    assert validate_recipe(settings, where="again") == config
    with pytest.raises(ConfigError, match="kind: 'math'"):
        validate_recipe(settings | {"kind": "math"}, where="typo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arms.base={}", "name of the untrained model"),
        ("baseline=none", "'none' is no arm"),
        ("rewriting.seed=3", "rewriting.seed has no effect"),
        ("evaluation.seed=3", "evaluation.seed has no effect"),
        ("data.benchmarks={mean: test.jsonl}", "name of all benchmarks together"),
        ("data.chat=true", "chat has no effect"),
        ("data.prompt=solve", "{problem} is missing"),
        ("arms.dft.loss=iw_sft", "needs scores of other models"),
        ("arms.dft.rows=expertt", "expert"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ConfigError) as error:
        load_recipe("rewrite-demo", [change])
    assert message in str(error.value)


def maths_recipes():
    return [name for name in builtin_recipes() if name.startswith("mtg-")]


@pytest.mark.parametrize("recipe", maths_recipes())
def test_the_published_recipes_run_to_their_report(
    recipe, saved_model, tmp_path, monkeypatch, capfd
):
    problems = [
        {"id": i, "problem": f"What is {i}+1?", "solution": f"It is \\boxed{{{i + 1}}}."}
        for i in range(4)
    ]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    settings = {
        "model": str(saved_model()),
        "loading": "{dtype: float32, device: cpu}",
        "data.root": tmp_path,
        "data.train": "problems.jsonl",
        "data.benchmarks": "{one: problems.jsonl, two: problems.jsonl}",
        "generation": "{backend: transformers}",
        "rewriting.max_new_tokens": 4,
        "rewriting.guided_prompt": '"{solution}{prompt}"',
        "training": "{learning_rate: 1.0e-3, epochs: 1, batch_size: 2}",
        "evaluation.max_new_tokens": 4,
        "evaluation.num_samples": 2,
        "evaluation.num_bootstrap": 100,
        "evaluation.graders": "[relative_tolerance]",
        "rewriting.verifier": "{kind: maths, grader: relative_tolerance}",
    }
    command = ["atlantis", "run", recipe, "--out", str(tmp_path / "out"), "--json"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    printed, said = capfd.readouterr()
    assert not stop.value.code, said
    comparison = json.loads(printed.splitlines()[-1])["comparison"]["relative_tolerance"]
    arms = yaml.safe_load(builtin_recipes()[recipe].read_text())["arms"]
    assert set(comparison["arms"]) == {"base", *arms}
    assert set(comparison["arms"]["base"]) == {"one", "two", "mean"}


@pytest.mark.parametrize("recipe", maths_recipes())
def test_the_published_hyperparameters_stand_in_the_recipe(recipe):
    config = load_recipe(recipe)
    training = config.training
    assert training.batch_size * training.gradient_accumulation == 256
    assert (training.learning_rate, training.epochs, training.schedule) == (5e-5, 1, "cosine")
    assert (training.adam_beta2, training.weight_decay, training.warmup_fraction) == (
        0.95,
        0.01,
        0.1,
    )
    assert (config.evaluation.num_samples, config.evaluation.temperature) == (16, 1.0)
    assert config.max_length == 2048
