"""Rows with stored log-probabilities beside them: each at its token, or a refusal."""

import math

import pytest

from atlantis import api
from atlantis.errors import ConfigError, DataError
from atlantis.models.loading import LoadingConfig, load_tokenizer
from atlantis.records import Example
from atlantis.training import stage
from atlantis.training.config import TrainingConfig
from atlantis.training.losses import BASE, REFERENCE
from atlantis.training.rows import training_rows
from atlantis.validation import validated

ROWS = [
    Example("a", "the storm", " caused the flood"),
    Example("b", "in the old town", " an engine"),
    Example("c", "the " * 40, " box"),
]


@pytest.fixture(scope="module")
def model(saved_model):
    return str(saved_model("qwen2"))


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model)


@pytest.fixture(scope="module", params=[False, True], ids=["completion", "with end of turn"])
def store(request, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "base"
    end = request.param
    return api.score(ROWS, model=model, out=out, score_end_of_turn=end, max_length=30)


def rows(tokenizer, store, examples=ROWS, **options):
    options = {"max_length": 30} | options
    return training_rows(examples, None, tokenizer, scores={BASE: store}, **options)


def test_every_log_probability_stands_at_its_token(tokenizer, store):
    dataset, _ = rows(tokenizer, store)
    scored = {row["example_id"]: row["token_logprobs"] for row in store.read().to_pylist()}
    end = store.fingerprint["scoring"]["score_end_of_turn"]
    for name, row in zip("ab", dataset, strict=True):
        trained = [at for at, label in enumerate(row["labels"]) if label != -100]
        known = [at for at, value in enumerate(row[BASE]) if not math.isnan(value)]
        assert known == (trained if end else trained[:-1])
        assert [row[BASE][at] for at in known] == pytest.approx(scored[name])


def test_rows_that_were_not_scored_are_left_out_and_counted(tokenizer, store):
    dataset, left_out = rows(tokenizer, store, max_length=200)  # longer than the scores' limit
    assert len(dataset) == 2
    assert left_out == {"too_long in base": 1}


def test_a_row_without_scores_is_named(tokenizer, store):
    with pytest.raises(DataError, match="example 'x' has no scores; score the same data"):
        rows(tokenizer, store, examples=[Example("x", "the", " box")])


def test_a_row_that_was_scored_as_other_tokens_is_named(tokenizer, store):
    with pytest.raises(DataError, match=r"example 'a' was scored as \d tokens and would be"):
        rows(tokenizer, store, examples=[Example("a", "the storm", " caused the old town")])


@pytest.mark.parametrize("loss", ["asft", "sft_kl"])
def test_a_divergence_from_the_base_trains_from_stored_scores(model, store, tmp_path, loss):
    def train(out, settings):
        config = validated(
            TrainingConfig,
            {"epochs": 4, "batch_size": 2, "learning_rate": 1e-2, "loss": settings},
            where="here",
        )
        stage.run(
            ROWS,
            None,
            model,
            out,
            config=config,
            loading=LoadingConfig(device="cpu"),
            max_length=30,
            seed=0,
            scores={BASE: store},
        )
        return stage.read_json(out / "run.json")

    weak = train(tmp_path / "weak", loss)
    strong = train(tmp_path / "strong", {"name": loss, "kl_weight": 50.0})
    assert weak["config"]["loss"]["name"] == loss
    assert weak["fingerprint"][f"scores.{BASE}"] == store.digest
    assert strong["loss"][0][1] == pytest.approx(weak["loss"][0][1], rel=1e-3)  # no divergence yet
    assert strong["loss"][-1][1] != pytest.approx(weak["loss"][-1][1], rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        ("iw_sft", (), "loss iw_sft needs reference scores"),
        ("asft", (REFERENCE,), "loss asft needs base scores"),
        ("dft", (BASE,), "loss dft does not look at base scores; leave them out"),
    ],
)
def test_scores_that_lack_or_have_no_effect_are_refused(
    model, store, tmp_path, loss, given, message
):
    config = validated(TrainingConfig, {"loss": loss}, where="here")
    with pytest.raises(ConfigError, match=message):
        stage.run(
            ROWS,
            None,
            model,
            tmp_path,
            config=config,
            loading=LoadingConfig(device="cpu"),
            max_length=30,
            seed=0,
            scores=dict.fromkeys(given, store),
        )


@pytest.mark.parametrize("name", ["sft", "nll"])
def test_a_bare_name_is_a_loss_with_its_defaults(name):
    config = validated(TrainingConfig, {"loss": name}, where="here")
    assert config == TrainingConfig()
    assert config.settings["loss"] == {"name": "sft"}
