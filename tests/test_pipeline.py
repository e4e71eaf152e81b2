"""The chain of a recipe: what is planned is what is run, and what the check does with few rows."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from sklearn.metrics import roc_auc_score

from atlantis.config import RunConfig
from atlantis.disk import read_json
from atlantis.errors import ConfigError
from atlantis.evaluation.separation import probe_rows
from atlantis.pipeline import Pipeline, check
from atlantis.pipeline.inputs import Inputs
from atlantis.records import TokenScores
from atlantis.store import ScoreStore, score_table
from atlantis.weighting.schemes import DropLowest, Influence, WeightingConfig

RELATIONS = ("Maker-Thing(e1,e2)", "Owner-Pet(e1,e2)", "Other")


def semeval_file(path: Path, num_rows: int, *, first_id: int) -> None:
    blocks = []
    for row in range(num_rows):
        sentence = f"the <e1>noun{row % 7}</e1> verb{row % 3} <e2>noun{row % 5}</e2> row{row}"
        blocks.append(f'{first_id + row}\t"{sentence}"\n{RELATIONS[row % 3]}\nComment:\n')
    path.write_text("\n".join(blocks) + "\n", encoding="utf-8")


@pytest.fixture
def recipe(tmp_path, saved_model) -> RunConfig:
    family = str(saved_model())
    for first_id, (name, num_rows) in enumerate([("train", 40), ("trusted", 20), ("test", 9)], 1):
        semeval_file(tmp_path / f"{name}.txt", num_rows, first_id=1000 * first_id)
    training = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8}
    data = {name: {"format": "semeval", "path": f"{name}.txt"} for name in ("trusted", "test")}
    noise = {"kind": "uniform", "rate": 0.3}
    data["train"] = {"format": "semeval", "path": "train.txt", "noise": noise}
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "seeds": [0],
            "models": {"large": family, "small": family},
            "data": data
            | {"root": tmp_path, "prompt": "{text} relation :", "negative_label": "Other"},
            "scoring": {"max_length": 256, "token_budget": 512},
            "reference": {"training": training},
            "training": training,
            "evaluation": {"num_bootstrap": 100},
            "arms": {
                "sft": {},
                "atlantis": {"weights": {"pareto_smooth": True}},
                "drop": {"weights": {"scheme": {"kind": "drop_lowest", "fraction": 0.2}}},
                "shuffled": {"weights": {"scheme": {"kind": "shuffled"}}},
            },
        }
    )


def test_the_plan_is_what_is_run(recipe, tmp_path):
    # Pareto smoothing wants 25 rows and the check has fewer: it goes on all the same.
    pipeline = Pipeline(recipe, tmp_path / "out", force=True)
    planned = [stage.name for stage, state in pipeline.plan() if state == "to do"]
    assert planned == [stage.name for stage, _ in pipeline.plan()]
    announced = []
    comparison = pipeline.run(lambda stage: announced.append(stage.name))
    assert announced == planned
    assert set(comparison["arms"]) == set(recipe.arms)
    found = read_json(next((tmp_path / "out/stages").glob("check-*/check.json")))
    assert found["separation"]["n"] < 25

    again = Pipeline(recipe, tmp_path / "out", force=True)
    states = {stage.name: state for stage, state in again.plan()}
    unneeded = {name for name, state in states.items() if state == "unneeded"}
    assert unneeded == {"train-sft-seed0", "train-drop-seed0", "train-shuffled-seed0"}
    assert "to do" not in states.values()
    assert again.run(pytest.fail) == comparison
    assert (tmp_path / "out/report.html").is_file()


def test_weights_that_will_do_harm_end_the_run_before_an_arm_is_trained(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "atlantis.pipeline.weighing.check_weights",
        lambda *args, **kwargs: {"verdict": "harm", "sentence": "The reference guesses."},
    )
    announced = []
    with pytest.raises(ConfigError, match=r"seed 0: The reference guesses\. .*--force"):
        Pipeline(recipe, tmp_path / "out").run(lambda stage: announced.append(stage.name))
    assert announced[-1] == "check-seed0"
    assert not any(name.startswith("train-") for name in announced)


@pytest.mark.parametrize(
    "config",
    [
        WeightingConfig(scheme=Influence(alpha=0.0), pareto_smooth=True, min_ess_fraction=0.9),
        WeightingConfig(scheme=Influence(alpha=0.0), normalise_within="length_decile"),
    ],
)
def test_held_out_rows_that_cannot_be_scored_are_left_out_with_their_pair(
    recipe, tmp_path, monkeypatch, config
):
    inputs = Inputs(recipe)
    rows = probe_rows(inputs.splits.heldout, inputs.splits.train, inputs.completions, seed=3)
    half = len(rows) // 2
    rng = random.Random(0)
    values = {row.example_id: rng.gauss(0, 1) - 9 for row in rows}
    bad = {rows[0].example_id, rows[half + 1].example_id}

    def score(examples, model, out):
        store = ScoreStore(out)
        store.start({"rendered_text": "x", "source": "y", "scoring": {"score_end_of_turn": False}})
        scores = [
            TokenScores(row.example_id, "nonfinite")
            if row.example_id in bad and model == "tuned"
            else TokenScores(row.example_id, "ok", 1, 1, value, (value,), 2)
            for row in examples
            for value in [values[row.example_id] if model == "tuned" else -9.0]
        ]
        store.write_part(0, score_table(scores))
        store.finish()
        return store

    def job(rows, role, models, **_):
        return SimpleNamespace(run=lambda out: score(rows, models[role], out))

    monkeypatch.setattr(check, "scoring_job", job)
    models = {"large": "large", "small": "small", "reference": "tuned"}
    found = check.measure_separation(inputs, config, models=models, folder=tmp_path, seed=3)
    left = [(r, w) for r, w in zip(rows[:half], rows[half:], strict=True)][2:]
    scored = [values[r.example_id] for r, _ in left] + [values[w.example_id] for _, w in left]
    assert found["n"] == half - 2
    truth = [1] * len(left) + [0] * len(left)
    assert found["mean"] == pytest.approx(roc_auc_score(truth, scored), abs=1e-12)


def test_a_selection_within_labels_is_judged_within_labels(recipe, tmp_path):
    inputs = Inputs(recipe)
    models = dict.fromkeys(("large", "small", "reference"), recipe.models.small)
    scheme = DropLowest(of=Influence(), fraction=0.5, within="label")
    config = WeightingConfig(scheme=scheme)
    found = check.measure_separation(inputs, config, models=models, folder=tmp_path, seed=0)
    # Equal models tie everywhere, so that the first ids of each label go.
    rows = probe_rows(inputs.splits.heldout, inputs.splits.train, inputs.completions, seed=0)
    kept = set()
    for label in RELATIONS:
        ids = sorted(row.example_id for row in rows if row.label == label)
        kept |= set(ids[min(round(0.5 * len(ids)), len(ids) - 1) :])
    won = [
        0.5 + 0.5 * ((right.example_id in kept) - (wrong.example_id in kept))
        for right in rows[: len(rows) // 2]
        for wrong in rows[len(rows) // 2 :]
        if right.label == wrong.label
    ]
    assert found["mean"] == pytest.approx(sum(won) / len(won), abs=1e-12)


def test_arms_take_other_losses_select_rows_and_weigh_by_the_normalised_target(recipe, tmp_path):
    arms = {
        "sft": {},
        "atlantis": {"weights": "proxy"},
        "shuffled": {"weights": {"scheme": {"kind": "shuffled"}}},
        "asft": {"loss": {"name": "asft", "kl_weight": 0.1}},
        "iw_sft": {"loss": "iw_sft", "weights": "influence"},
        "half": {
            "select": {"share": 0.5, "drop_unhelped": False, "judge": "small"},
            "weights": "influence",
        },
    }
    settings = recipe.model_dump() | {"arms": arms}
    pipeline = Pipeline(RunConfig.model_validate(settings), tmp_path / "out", force=True)
    pipeline.run(lambda stage: None)
    folder = tmp_path / "out/stages"
    records = {
        arm: read_json(next(folder.glob(f"evaluate-{arm}-seed0-*")) / "run.json") for arm in arms
    }
    assert records["asft"]["config"]["loss"]["kl_weight"] == 0.1
    assert "scores.base_logprobs" in records["asft"]["fingerprint"]
    assert "scores.reference_logprobs" in records["iw_sft"]["fingerprint"]
    assert (records["sft"]["num_rows"], records["half"]["num_rows"]) == (40, 20)
    assert records["half"]["num_steps"] < records["sft"]["num_steps"]
    card = next(folder.glob("train-atlantis-seed0-*")) / "README.md"
    assert "## Results" in card.read_text()
    assert "official_f1, 9 test rows" in card.read_text()
    assert r"p_\text{small} / Z" in card.read_text()


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"rows": "train+trusted", "loss": "asft"}, "loss asft needs scores, and trusted rows"),
        ({"rows": "right", "select": {"share": 0.5}}, "use rows: train"),
        ({"select": {"method": "weight"}}, "select by weight needs weights"),
        ({"select": {"pool": 0.5}}, "an option of 'atlantis select' only"),
        ({"select": {"keep_weights": True}}, "goes without saying"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(recipe, arm, message):
    settings = recipe.model_dump()
    settings["arms"]["other"] = arm
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(settings)
