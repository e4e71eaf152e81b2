"""An encoder-decoder through everything that a recipe does: score, weigh, train, evaluate."""

import math
import random

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from atlantis.config import RunConfig, load_recipe
from atlantis.disk import read_json, read_table
from atlantis.errors import ConfigError, DataError, ResumableError
from atlantis.models.loading import LoadingConfig
from atlantis.pipeline import Pipeline
from atlantis.pipeline.inputs import Inputs
from atlantis.recipes import builtin_recipes
from atlantis.records import Example
from atlantis.scoring import stage as scoring
from atlantis.scoring.stage import ScoringConfig
from atlantis.training import checkpoints
from atlantis.training import stage as training
from atlantis.training.config import TrainingConfig
from atlantis.training.losses import REFERENCE
from atlantis.training.rows import training_rows

RELATIONS = ("Maker-Thing(e1,e2)", "Owner-Pet(e1,e2)", "Other")
VERBS = ("caused", "wrote", "the")


@pytest.fixture(scope="module")
def t5(bpe_tokenizer, tmp_path_factory):
    """The folder of a random T5, by its width."""

    def save(width=32, dropout=0.1):
        folder = tmp_path_factory.mktemp(f"t5-{width}")
        torch.manual_seed(width)
        config = T5Config(
            vocab_size=320,
            d_model=width,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            dropout_rate=dropout,
            pad_token_id=1,
            eos_token_id=0,
            decoder_start_token_id=1,
        )
        T5ForConditionalGeneration(config).save_pretrained(folder)
        bpe_tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def semeval_file(path, num_rows, *, first_id):
    """The verb decides the relation."""
    blocks = []
    for row in range(num_rows):
        sentence = f"<e1>{row % 7}</e1> {VERBS[row % 3]} <e2>{row % 5}</e2> {row}"
        blocks.append(f'{first_id + row}\t"{sentence}"\n{RELATIONS[row % 3]}\nComment:\n')
    path.write_text("\n".join(blocks) + "\n", encoding="utf-8")


@pytest.fixture
def recipe(tmp_path, t5):
    for first_id, (name, num_rows) in enumerate([("train", 60), ("trusted", 60), ("test", 12)], 1):
        semeval_file(tmp_path / f"{name}.txt", num_rows, first_id=1000 * first_id)
    training = {"learning_rate": 1e-2, "epochs": 12, "batch_size": 8}
    data = {name: {"format": "semeval", "path": f"{name}.txt"} for name in ("trusted", "test")}
    noise = {"kind": "uniform", "rate": 0.2}
    data["train"] = {"format": "semeval", "path": "train.txt", "noise": noise}
    return RunConfig.model_validate(
        {
            "name": "tiny-t5",
            "seeds": [0],
            "models": {"large": t5(32, dropout=0.0), "small": t5(24, dropout=0.0)},
            "data": data
            | {"root": tmp_path, "prompt": "{text} relation :", "negative_label": "Other"},
            "scoring": {"max_length": 256, "token_budget": 512},
            "reference": {"training": training | {"epochs": 20}},
            "training": training,
            "evaluation": {"num_bootstrap": 100},
            "arms": {
                "sft": {},
                "atlantis": {"weights": "influence", "loss": "iw_sft"},
                "shuffled": {"weights": {"scheme": {"kind": "shuffled"}}},
            },
        }
    )


def test_a_recipe_runs_from_data_to_report_and_its_models_learn(recipe, tmp_path):
    pipeline = Pipeline(recipe, tmp_path / "out", force=True)
    comparison = pipeline.run(lambda stage: None)
    assert set(comparison["arms"]) == set(recipe.arms)
    assert (tmp_path / "out/report.html").is_file()
    stages = tmp_path / "out/stages"
    for arm in recipe.arms:
        (folder,) = stages.glob(f"evaluate-{arm}-seed0-*")
        predictions = read_table(folder / "predictions.parquet").to_pydict()
        right = [a == b for a, b in zip(predictions["generated"], predictions["gold"], strict=True)]
        assert sum(right) > 8  # of 12; 4 by chance
        assert read_json(folder / "run.json")["num_steps"] == 90
    weights = read_table(next(stages.glob("weigh-atlantis-*")) / "weights.parquet").to_pydict()
    assert set(weights["status"]) == {"ok"}
    rows = {row.example_id: row for row in Inputs(recipe).splits.train}
    by_truth = {True: [], False: []}
    for name, weight in zip(weights["example_id"], weights["weight"], strict=True):
        by_truth[rows[name].label == rows[name].gold_label].append(weight)
    assert sum(by_truth[True]) / len(by_truth[True]) > sum(by_truth[False]) / len(by_truth[False])
    again = Pipeline(recipe, tmp_path / "out", force=True)
    assert "to do" not in {state for _, state in again.plan()}


def test_a_test_row_over_the_limit_is_found_before_anything_is_trained(recipe):
    scored = recipe.scoring.model_copy(update={"max_length": 40})
    with pytest.raises(DataError, match=r"longer than scoring\.max_length 40"):
        Inputs(recipe.model_copy(update={"scoring": scored}))


@pytest.mark.parametrize("name", ["semeval-weak", "semeval-noise20"])
def test_the_recipe_for_t5_differs_from_its_twin_in_models_and_learning_rates(name):
    pair = [load_recipe(found, ()).model_dump() for found in (name, f"{name}-t5")]
    assert f"{name}-t5" in builtin_recipes()
    for config in pair:
        for settings in (config["training"], config["reference"]["training"]):
            del settings["learning_rate"]
        del config["models"], config["name"]
    assert pair[0] == pair[1]


def examples(num_rows=40):
    rng = random.Random(0)
    words = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author"]
    return [
        Example(
            f"r{row}",
            " ".join(rng.choices(words, k=rng.randint(2, 20))),
            " " + " ".join(rng.choices(words, k=rng.randint(1, 8))),
        )
        for row in range(num_rows)
    ]


ROWS = examples()
WEIGHTS = {row.example_id: 0.25 + index % 7 for index, row in enumerate(ROWS)}
SETTINGS = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 4, "checkpoint_steps": 5}


def train(model, out, **changes):
    """30 steps in 3 epochs of 10, unless told."""
    training.run(
        ROWS,
        WEIGHTS,
        model,
        out,
        config=TrainingConfig.model_validate(SETTINGS | changes),
        loading=LoadingConfig(),
        max_length=128,
        seed=0,
    )
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("step", [5, 15, 20])
def test_a_killed_training_goes_on_to_the_bytes_of_one_without_a_stop(
    t5, tmp_path, monkeypatch, step
):
    model = t5()
    (tmp_path / "whole").mkdir()
    expected = train(model, tmp_path / "whole" / "out", checkpoint_steps="never")
    assert {"model.safetensors", "run.json", "tokenizer.json"} <= expected.keys()
    seal = checkpoints.seal

    def sealed(written, *arguments):
        seal(written, *arguments)
        if written.name == f"checkpoint-{step}":
            raise ResumableError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", sealed)
        with pytest.raises(ResumableError, match="killed"):
            train(model, tmp_path / "out")
    assert (tmp_path / "out" / f"checkpoint-{step}").is_dir()
    assert train(model, tmp_path / "out") == expected


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_are_merged_into_a_model_of_the_same_kind(t5, tmp_path, checkpointing):
    model = t5()
    found = train(
        model, tmp_path / "out", lora={"r": 4}, epochs=1, activation_checkpointing=checkpointing
    )
    assert "adapter_config.json" not in found
    trained = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").state_dict()
    before = AutoModelForSeq2SeqLM.from_pretrained(model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], trained[name])}
    assert any(name.startswith("encoder") for name in changed)
    assert any(name.startswith("decoder") for name in changed)
    assert "shared.weight" not in changed
    losses = [loss for _, loss in read_json(tmp_path / "out/run.json")["loss"]]
    assert all(math.isfinite(loss) for loss in losses)


def test_activations_that_are_recomputed_give_the_same_model(t5, tmp_path):
    model = t5()
    for name, recomputed in (("a", False), ("b", True)):
        train(model, tmp_path / name, epochs=1, activation_checkpointing=recomputed)
    weights = [AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name) for name in ("a", "b")]
    for one, two in zip(weights[0].parameters(), weights[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_quantized_weights_are_refused(t5, tmp_path):
    with pytest.raises(ConfigError, match="an encoder-decoder is not trained in 4bit"):
        train(t5(), tmp_path / "out", lora={"r": 4}, quantization="4bit")


def test_stored_log_probabilities_stand_beside_their_labels(t5, bpe_tokenizer, tmp_path):
    model = t5()
    config = ScoringConfig(max_length=128, score_end_of_turn=False)
    job = scoring.prepare(ROWS, model, config=config, loading=LoadingConfig())
    store = job.run(tmp_path / "scores")
    dataset, left_out = training_rows(
        ROWS,
        WEIGHTS,
        bpe_tokenizer,
        max_length=128,
        scores={REFERENCE: store},
        decoder_start=1,
    )
    assert left_out == {}
    network = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    for row, example in zip(dataset, ROWS, strict=True):
        assert row["input_ids"] == bpe_tokenizer(example.prompt)["input_ids"]
        assert row["labels"] == [*bpe_tokenizer(example.completion)["input_ids"], 0]
        assert row["decoder_input_ids"] == [1, *row["labels"][:-1]]
        with torch.no_grad():
            logits = network(
                input_ids=torch.tensor([row["input_ids"]]),
                decoder_input_ids=torch.tensor([row["decoder_input_ids"]]),
            ).logits[0]
        own = logits.log_softmax(-1).gather(-1, torch.tensor(row["labels"])[:, None]).squeeze(-1)
        assert math.isnan(row[REFERENCE][-1])  # the end of the turn was not scored
        assert row[REFERENCE][:-1] == pytest.approx(own[:-1].tolist(), abs=1e-4)
