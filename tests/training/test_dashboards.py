"""Dashboards and quantized weights under adapters, where their packages are installed."""

import importlib.util
import json

import pytest
import torch

from atlantis.errors import ConfigError
from atlantis.models.loading import LoadingConfig, load_model, load_tokenizer
from atlantis.records import Example
from atlantis.training import stage
from atlantis.training.config import TrainingConfig
from atlantis.validation import validated

ROWS = [Example(f"r{i}", "the storm", f" caused the {word}") for i, word in enumerate("abcdefgh")]


def train(model, out, **settings):
    defaults = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2}
    config = validated(TrainingConfig, defaults | settings, where="here")
    loading = LoadingConfig(device="cpu")
    stage.run(ROWS, None, model, out, config=config, loading=loading, max_length=64, seed=0)
    return json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module")
def model(saved_model):
    return str(saved_model("qwen2"))


def test_a_dashboard_that_is_not_installed_is_named_before_anything_is_loaded(model, tmp_path):
    missing = [name for name in ("trackio", "wandb") if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all dashboards are installed")
    with pytest.raises(ConfigError, match=f"report_to {missing[0]}: not installed here; pip"):
        train(model, tmp_path, report_to=missing[:1])


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
def test_tensorboard_reads_the_losses_beside_the_folder(model, tmp_path):
    record = train(model, tmp_path / "out.partial", report_to=["tensorboard"])
    assert "report_to" not in record["config"]  # the trained model is the same
    assert list((tmp_path / "out.logs").glob("events.out.*"))
    assert not list((tmp_path / "out.partial").glob("**/events.out.*"))


def test_quantized_weights_need_adapters():
    with pytest.raises(ConfigError, match="train adapters, give lora"):
        validated(TrainingConfig, {"quantization": "4bit"}, where="here")


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.filterwarnings("ignore")  # of bitsandbytes on a CPU
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_adapters_over_quantized_weights_are_saved_alone_and_can_be_loaded(
    saved_model, tmp_path, kind
):
    # Blocks of 64 weights; no bias, which bitsandbytes adds in place to a leaf on a CPU.
    model = str(saved_model("llama", hidden_size=64, intermediate_size=128))
    record = train(model, tmp_path / "out", lora={"r": 4}, quantization=kind)
    assert record["config"]["quantization"] == kind
    assert record["loss"][-1][1] < record["loss"][0][1]
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    loaded = load_model(str(tmp_path / "out"), LoadingConfig(device="cpu"))
    ids = torch.tensor([load_tokenizer(model)("the storm caused")["input_ids"]])
    with torch.no_grad():
        assert loaded(ids).logits.isfinite().all()
