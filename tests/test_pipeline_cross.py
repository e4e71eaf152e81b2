"""ATLANTIS-cross: weights of another family's small models, read in their own tokens."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from atlantis.config import RunConfig
from atlantis.disk import read_json, read_table
from atlantis.errors import ConfigError, ModelError
from atlantis.pipeline import Pipeline
from atlantis.weighting.weights import read_weights

RELATIONS = ("Maker-Thing(e1,e2)", "Owner-Pet(e1,e2)", "Other")
BYTES = {"scheme": {"kind": "influence", "unit": "byte"}}


@pytest.fixture(scope="session")
def other_tokenizer():
    """Characters of other alphabets, and merges of other text, than `bpe_tokenizer` has."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(
        ["noun verb relation row, the Maker-Thing of the Owner-Pet"] * 5, trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="session")
def other_model(tiny_model, other_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    tiny_model("llama", seed=7, vocab_size=len(other_tokenizer)).save_pretrained(folder)
    other_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(tmp_path, saved_model, other_model):
    own = str(saved_model())
    for name, num_rows, first_id in [("train", 30, 100), ("trusted", 20, 200), ("test", 9, 300)]:
        blocks = [
            f'{first_id + row}\t"the <e1>noun{row % 7}</e1> verb{row % 3} <e2>noun{row % 5}</e2> '
            f'row{row}"\n{RELATIONS[row % 3]}\nComment:\n'
            for row in range(num_rows)
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(blocks) + "\n", encoding="utf-8")
    training = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8}
    noise = {"kind": "uniform", "rate": 0.3}
    return {
        "name": "cross",
        "seeds": [0],
        "models": {"large": own, "small": own, "cross": {"other": {"small": other_model}}},
        "data": {
            "root": str(tmp_path),
            "train": {"format": "semeval", "path": "train.txt", "noise": noise},
            "trusted": {"format": "semeval", "path": "trusted.txt"},
            "test": {"format": "semeval", "path": "test.txt"},
            "prompt": "{text} relation :",
            "negative_label": "Other",
        },
        "scoring": {"max_length": 256, "token_budget": 512},
        "reference": {"training": training},
        "training": training,
        "evaluation": {"num_bootstrap": 100},
        "arms": {
            "sft": {},
            "atlantis": {"weights": BYTES},
            "atlantis_cross": {"weights": BYTES, "cross": "other"},
        },
        "control": None,
        "headline": "atlantis_cross",
    }


def naive_mean_per_byte(folder, prompt, completion):
    """Natural logarithm of p(completion | prompt) per byte, in float64, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    before, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"]
    same = [a == b for a, b in zip(before, whole, strict=False)]
    start = same.index(False) if False in same else len(same)
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    total = sum(logits[place - 1, whole[place]].item() for place in range(start, len(whole)))
    return total / len(completion.encode())


def test_a_large_model_is_trained_with_the_weights_of_another_family(settings, tmp_path):
    config = RunConfig.model_validate(settings)
    pipeline = Pipeline(config, tmp_path / "out", force=True)
    (note,) = pipeline.notes
    assert note.startswith("atlantis_cross: weights by models of another family, other: small ")
    names = [stage.name for stage, _ in pipeline.plan()]
    assert {"reference-seed0", "reference-other-seed0", "score-small", "score-small-other"} <= set(
        names
    )
    comparison = pipeline.run(lambda stage: None)
    assert set(comparison["arms"]) == {"sft", "atlantis", "atlantis_cross"}

    stages = tmp_path / "out/stages"
    weights = read_weights(next(stages.glob("weigh-atlantis_cross-*/weights.parquet")))
    rows = read_table(next(stages.glob("data-*/train.parquet"))).to_pylist()
    text = {row["example_id"]: (row["prompt"], row["completion"]) for row in rows}
    reference = next(stages.glob("reference-other-seed0-*"))
    small = settings["models"]["cross"]["other"]["small"]
    shift = weights.diagnostics["log_normaliser"]
    picked = list(zip(weights.example_id, weights.log_weight, strict=True))[::4]
    assert len(picked) == 8
    for example_id, log_weight in picked:
        ratio = naive_mean_per_byte(reference, *text[example_id]) - naive_mean_per_byte(
            small, *text[example_id]
        )
        assert log_weight + shift == pytest.approx(ratio, abs=1e-5)

    drawn = read_json(tmp_path / "out/report.json")["weights"]["densities"]
    assert drawn["titles"] == ["ATLANTIS", "ATLANTIS-cross"]
    assert drawn["axis"] == "ratio"
    # The check asked the other family, too.
    assert read_json(next(stages.glob("check-*/check.json")))["separation"]["n"] > 0


def test_a_recipe_whose_small_model_has_other_tokens_is_cross_as_well(
    settings, other_model, tmp_path
):
    settings["models"] = {"large": settings["models"]["large"], "small": other_model}
    del settings["arms"]["atlantis_cross"]
    settings |= {"headline": "atlantis"}
    pipeline = Pipeline(RunConfig.model_validate(settings), tmp_path / "out", force=True)
    (note,) = pipeline.notes
    assert "has another tokenizer than" in note
    pipeline.run(lambda stage: None)
    weights = read_weights(next((tmp_path / "out/stages").glob("weigh-*/weights.parquet")))
    assert all(math.isfinite(weight) for weight in weights.weight)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            {"weights": "algorithm1"},
            r"arms.other: weights algorithm1 are ratios per token, but the "
            r"large model .* and the small model .* split text into different tokens; use unit:",
        ),
        (
            {"weights": {"scheme": {"kind": "shuffled", "of": "ratio"}}},
            "weights shuffled are ratios",
        ),
    ],
)
def test_ratios_per_token_across_tokenizers_are_refused_before_anything_runs(
    settings, tmp_path, arm, message
):
    settings["arms"]["other"] = arm | {"cross": "other"}
    with pytest.raises(ConfigError, match=message):
        Pipeline(RunConfig.model_validate(settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arm", "error", "message"),
    [
        ({"weights": "influence", "loss": "iw_sft"}, ConfigError, "log-probability of every token"),
        ({"weights": "proxy"}, ModelError, "have different tokenizers"),
    ],
)
def test_what_needs_one_tokenizer_is_refused_where_the_small_model_has_another(
    settings, other_model, tmp_path, arm, error, message
):
    settings["models"] = {"large": settings["models"]["large"], "small": other_model}
    settings["arms"]["atlantis_cross"] = arm
    with pytest.raises(error, match=message):
        Pipeline(RunConfig.model_validate(settings), tmp_path / "out")


def test_a_reference_with_other_tokens_than_its_small_model_is_refused(
    settings, other_model, tmp_path
):
    settings["models"]["cross"]["other"]["reference"] = settings["models"]["small"]
    settings["arms"]["atlantis_cross"] = {"weights": "influence", "cross": "other"}
    with pytest.raises(ConfigError, match=r"the small model .* and the reference model"):
        Pipeline(RunConfig.model_validate(settings), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms.atlantis_cross.cross": "nobody"}, "'nobody' is not in models.cross: other"),
        ({"arms.atlantis_cross.weights": None}, "cross: other has no effect without weights"),
        ({"arms.atlantis_cross.weights": "uniform"}, "the scheme uniform takes no small model"),
        ({"arms.atlantis_cross.weights": "proxy"}, "the scheme proxy takes no small model"),
        ({"arms.atlantis_cross.cross": None}, "no arm has cross: other"),
        ({"models.cross": {"a b": {"small": "x"}}}, "models.cross"),
        ({"reference": {"model": "x"}}, "models.cross.other.reference: name one"),
    ],
)
def test_a_family_without_effect_is_refused(settings, change, message):
    for place, value in change.items():
        *parents, last = place.split(".")
        target = settings
        for parent in parents:
            target = target[parent]
        target[last] = value
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(settings)
