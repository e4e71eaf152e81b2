"""The normalised target of Algorithm 1: scored by the proxy-tuned model, equal to a naive sum."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from atlantis import api
from atlantis.data.tokenization import tokenize
from atlantis.errors import ConfigError, WeightError
from atlantis.models.loading import load_tokenizer
from atlantis.records import Example

ROWS = [
    Example("a", "the storm", " caused the flood"),
    Example("b", "in the old town", " an engine"),
    Example("c", "the author", " of a box in the town"),
]


@pytest.fixture(scope="module")
def models(saved_model):
    return {
        role: str(saved_model("qwen2", seed=seed, vocab_size=320 + 16 * seed))
        for seed, role in enumerate(("large", "small", "reference"))
    }


@pytest.fixture(scope="module")
def store(models, tmp_path_factory):
    return score(models, tmp_path_factory.mktemp("scores") / "proxy")


def score(models, out, **options):
    others = {f"proxy_{role}": models[role] for role in ("small", "reference")}
    return api.score(ROWS, model=models["large"], out=out, backend="proxy", **(others | options))


def naive(models, alpha=1.0):
    """Sequence log-probabilities from three full float64 distributions."""
    roles = {
        role: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        for role, path in models.items()
    }
    found = {}
    for row in tokenize(ROWS, load_tokenizer(models["large"]), max_length=64):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logits = {r: m(ids).logits[0, :, :320].log_softmax(-1) for r, m in roles.items()}
        moved = logits["large"] + alpha * (logits["reference"] - logits["small"])
        logprobs = moved.log_softmax(-1)
        positions = row.scored_positions(end_of_turn=False)
        found[row.example_id] = [float(logprobs[at - 1, row.input_ids[at]]) for at in positions]
    return found


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_scores_equal_the_normalised_product_of_three_distributions(models, tmp_path, alpha):
    found = score(models, tmp_path / "s", proxy_alpha=alpha).read().to_pylist()
    expected = naive(models, 1.0 if alpha is None else alpha)
    for row in found:
        assert row["token_logprobs"] == pytest.approx(expected[row["example_id"]], abs=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_weights_are_its_probability_per_token_or_per_sequence(models, store, alpha):
    weights = api.weigh(proxy=store, scheme="proxy", alpha=alpha)
    logs = {name: sum(v) / len(v) ** alpha for name, v in naive(models).items()}
    first = np.array([logs[name] for name in weights.example_id])
    found = np.array(weights.log_weight)
    assert found - found[0] == pytest.approx(first - first[0], abs=1e-4)


def test_a_shuffled_control_can_be_made_of_it(store):
    shuffled = api.weigh(proxy=store, scheme={"kind": "shuffled", "of": "proxy", "seed": 1})
    plain = api.weigh(proxy=store, scheme="proxy")
    assert sorted(shuffled.weight)[-1] > 0
    assert len(shuffled.weight) == len(plain.weight)


def test_the_scheme_without_its_scores_is_refused(store):
    with pytest.raises(WeightError, match="needs scores of the proxy model"):
        api.weigh(large=store, scheme="proxy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "proxy"}, "backend proxy needs proxy_small and proxy_reference"),
        ({"backend": "transformers", "proxy_alpha": 1.0}, "proxy_alpha has no effect on backend"),
        ({"backend": "proxy", "base_url": "http://x/v1"}, "base_url has no effect on backend"),
        ({"backend": "other"}, "choose transformers, vllm, server or proxy"),
    ],
)
def test_options_without_effect_are_refused(models, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        api.score(ROWS, model=models["large"], out=tmp_path, **options)


def test_what_was_scored_by_other_models_is_not_taken_up(models, store):
    from atlantis.errors import StoreError

    with pytest.raises(StoreError, match=r"proxy\.alpha"):
        score(models, store.folder, proxy_alpha=0.25)
