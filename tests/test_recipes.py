"""Every built-in recipe from data to report: the real command line, real rows, tiny random models.

The quickstart and recipes about maths have tests of their own.
"""

import gc
import json
import sys

import pytest
import torch
import yaml
from transformers import T5Config, T5ForConditionalGeneration

from atlantis.cli import main
from atlantis.recipes import builtin_recipes

NUM_STEPS, BATCH, NUM_TEST_ROWS = 2, 4, 6
TRAINING = f"{{learning_rate: 1.0e-3, epochs: 1, batch_size: {BATCH}}}"
SETTINGS = {
    "seeds": "[0]",
    "data.train.sample": NUM_STEPS * BATCH,
    "data.trusted.sample": 12,
    "data.test.sample": NUM_TEST_ROWS,
    "training": TRAINING,
    "reference.training": TRAINING,
    "evaluation.num_bootstrap": 100,
}


def recipes():
    maths = {name for name in builtin_recipes() if name.startswith("mtg-")}
    return sorted(set(builtin_recipes()) - {"quickstart", "rewrite-demo"} - maths)


@pytest.fixture(autouse=True)
def fast_collections():
    """Every training ends with a garbage collection, which need not look at the libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def saved_t5(bpe_tokenizer, tmp_path_factory):
    """The folder of a random encoder-decoder model, with its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=len(bpe_tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        eos_token_id=0,
        pad_token_id=1,
        decoder_start_token_id=1,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    bpe_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def families(saved_model, saved_t5):
    return {
        "decoder": {"large": str(saved_model()), "small": str(saved_model(seed=1))},
        "t5": {"large": str(saved_t5), "small": str(saved_t5)},
        "cross": {
            "large": str(saved_model()),
            "small": str(saved_model(seed=1)),
            "cross": {"smollm2": {"small": str(saved_model("llama"))}},
        },
    }


@pytest.mark.parametrize("recipe", recipes())
def test_a_built_in_recipe_runs_to_its_report(
    recipe, families, shared_data, tmp_path, monkeypatch, capfd
):
    family = families[next((kind for kind in ("t5", "cross") if kind in recipe), "decoder")]
    settings = SETTINGS | {"data.root": shared_data, "models": json.dumps(family)}
    command = ["atlantis", "run", recipe, "--out", str(tmp_path), "--force", "--json"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    printed, said = capfd.readouterr()
    assert not stop.value.code, said
    comparison = json.loads(printed.splitlines()[-1])["comparison"]
    contents = yaml.safe_load(builtin_recipes()[recipe].read_text(encoding="utf-8"))
    arms = contents["arms"]
    assert set(comparison["arms"]) >= set(arms)  # conll04 adds a table of entity types
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    stages = tmp_path / "stages"
    name = contents.get("headline", "atlantis")
    (headline,) = stages.glob(f"train-{name}-seed0-*/run.json")
    assert json.loads(headline.read_text())["num_steps"] == NUM_STEPS
    tested = [json.loads(path.read_text()) for path in stages.glob("evaluate-*/metrics.json")]
    assert [metrics["n"] for metrics in tested] == [NUM_TEST_ROWS] * len(arms)
