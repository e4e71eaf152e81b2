"""The flat script `examples/weighted_sft_loop.py` is the package: same weights, same training."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import atlantis
from atlantis.data.sources import open_source
from atlantis.training.rows import training_rows
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

SCRIPT = Path(__file__).parents[2] / "examples" / "weighted_sft_loop.py"
NUM_ROWS = 20
STEPS = {"batch_size": 4, "accumulation": 2}
"""Three steps an epoch; the last has 4 rows and half its micro-batches."""
EPOCHS = 3


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("weighted_sft_loop", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ragged rows; some completions begin without a space, so that tokens merge across."""
    draw = random.Random(0)
    words = ["storm", "flood", "the box", "of letters", "Cause-Effect(e1,e2)", "old town", "car"]
    lines = []
    for index in range(NUM_ROWS):
        prompt = " ".join(draw.choices(words, k=draw.randrange(1, 8)))
        completion = ("" if index % 4 == 0 else " ") + " ".join(
            draw.choices(words, k=draw.randrange(1, 6))
        )
        lines.append({"example_id": f"r{index:02}", "prompt": prompt, "completion": completion})
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def models(saved_model) -> dict[str, str]:
    seeds = {"large": 1, "small": 2, "reference": 3}
    # Less spread than usual: at 0.3 the float32 errors of the log-probabilities reach 1e-6.
    options = {"initializer_range": 0.15}
    return {role: str(saved_model("llama", seed=seed, **options)) for role, seed in seeds.items()}


@pytest.fixture(scope="module")
def examples(script, data, models):
    tokenizer = AutoTokenizer.from_pretrained(models["large"])
    return [script.tokenize(row, tokenizer) for row in script.read_rows(data)]


@pytest.fixture(scope="module")
def script_weights(script, examples, models):
    scores = [script.score(script.load(models[role], "cpu"), examples) for role in models]
    num_tokens = torch.tensor([len(example.ids) - example.start for example in examples])
    return script.influence_weights(scores[1], scores[2], num_tokens)


@pytest.fixture(scope="module")
def weights(data, models, tmp_path_factory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("scores")
    stores = {
        role: atlantis.score(data, model=models[role], out=folder / role)
        for role in ("small", "reference")
    }
    made = atlantis.weigh(**stores, scheme="influence")
    return dict(zip(made.example_id, made.weight, strict=True))


def test_tokens_and_boundaries_are_those_of_the_package(examples, data, models):
    tokenizer = AutoTokenizer.from_pretrained(models["large"])
    rows, _ = training_rows(list(open_source(str(data))), None, tokenizer, max_length=256)
    for row, example in zip(rows, examples, strict=True):
        assert row["input_ids"] == example.ids.tolist()
        assert row["labels"].count(-100) == example.start


def test_weights_are_those_of_weigh(script_weights, weights):
    ours = np.array([weights[f"r{index:02}"] for index in range(NUM_ROWS)])
    assert ours.max() / ours.min() > 3  # there is something to get wrong
    # Log-probabilities are float32 and were computed in batches of another shape.
    np.testing.assert_allclose(script_weights.numpy(), ours, rtol=1e-6)


@pytest.mark.parametrize("max_grad_norm", [1.0, 100.0], ids=["clipped", "unclipped"])
def test_trained_parameters_are_those_of_the_trainer(
    script, examples, script_weights, data, models, tmp_path, max_grad_norm
):
    flat = script.load(models["large"], "cpu")
    start = parameters(flat)
    options = {"epochs": EPOCHS, "learning_rate": 1e-3, "max_grad_norm": max_grad_norm}
    losses = script.train(flat, examples, script_weights, seed=None, **options, **STEPS)
    trainer = trained(data, models["large"], script_weights, tmp_path, max_grad_norm)
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert logged == pytest.approx(losses, rel=1e-5)
    ours = parameters(trainer.model)
    assert (ours - start).abs().max() > 5e-3  # nine steps of AdamW at 1e-3
    # Float32 sums in another order, which AdamW divides by their own small size.
    assert (ours - parameters(flat)).abs().max() < 1e-5


def parameters(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def trained(data, model, weights, folder, max_grad_norm) -> WeightedSFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(model)
    by_id = {f"r{index:02}": float(weight) for index, weight in enumerate(weights)}
    rows, _ = training_rows(list(open_source(str(data))), by_id, tokenizer, max_length=256)
    arguments = WeightedSFTConfig(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=STEPS["batch_size"],
        gradient_accumulation_steps=STEPS["accumulation"],
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        max_grad_norm=max_grad_norm,
        weight_decay=0.0,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = WeightedSFTTrainer(loaded, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


def test_the_script_runs_and_saves_a_checkpoint(
    script, data, models, tmp_path, monkeypatch, capsys
):
    files = [f"--{name}={value}" for name, value in ({"data": data} | models).items()]
    options = ["--epochs=1", "--learning-rate=0.01", "--max-length=60", "--device=cpu"]
    out = tmp_path / "trained"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *files, *options, f"--out={out}"])
    script.main()
    printed = capsys.readouterr().out
    assert "effective size" in printed
    assert "saved to" in printed
    AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out).eos_token == "<eos>"


def test_the_script_is_short_and_stands_alone():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 200
    assert "import atlantis" not in text
    assert "from atlantis" not in text
