"""`WeightedSeq2SeqTrainer` against a float64 hand computation, one example at a time.

The same file is the program that two processes run.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from atlantis import WeightedSeq2SeqConfig, WeightedSeq2SeqTrainer
from atlantis.errors import ConfigError, DataError, WeightError
from atlantis.training.losses import BASE, REFERENCE, token_loss

VOCABULARY = 320
PAD, EOS = 1, 0

T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
    "initializer_factor": 1.0,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "init_std": 0.2,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
}
ARCHITECTURES = ("t5", "t5, untied", "bart")
NORMALISERS = ("token_mean", "example_mean", "sequence_sum")


def built(name):
    torch.manual_seed(0)
    if name == "bart":
        model = BartForConditionalGeneration(BartConfig(**BART))
        torch.nn.init.normal_(model.final_logits_bias)
        return model
    tied = name == "t5"
    model = T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=tied))
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 16) / 4)
    return model


@pytest.fixture
def build():
    return built


def ragged_rows(num_rows, *, seed=1, weights=True):
    """Lopsided rows, some with labels that are not learnt at the beginning."""
    generator = torch.Generator().manual_seed(seed)

    def ids(least, most):
        length = int(torch.randint(least, most, (1,), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    rows = []
    for number in range(num_rows):
        labels = [*ids(1, 12), EOS]
        if number % 3 == 2:
            labels[0] = -100
        row = {"input_ids": ids(2, 20), "labels": labels}
        if weights:
            row["weight"] = float(torch.randn(1, generator=generator).mul(1.5).exp())
        rows.append(row)
    return rows


def arguments(folder: Path, **changes):
    return WeightedSeq2SeqConfig(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 8,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "max_steps": 1,
            "max_grad_norm": 1e9,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "seed": 3,
            "disable_tqdm": True,
        }
        | changes,
    )


class KeepsGradient(WeightedSeq2SeqTrainer):
    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)

        def keep(*_):
            self.gradient = torch.cat(
                [p.grad.flatten().double() for p in self.model.parameters() if p.requires_grad]
            )

        optimizer.register_step_pre_hook(keep)
        return optimizer


@pytest.fixture
def train(bpe_tokenizer, tmp_path):
    def train(model, rows, *, peft_config=None, **changes):
        trainer = KeepsGradient(
            model,
            arguments(tmp_path, **changes),
            train_dataset=Dataset.from_list(rows),
            processing_class=bpe_tokenizer,
            peft_config=peft_config,
        )
        trainer.train()
        return trainer

    return train


def row_logprobs(double, row):
    """Log-probabilities of the learnt labels of one row, by the model's own logits."""
    labels = torch.tensor(row["labels"])
    start = double.config.decoder_start_token_id
    read = [start, *(PAD if label == -100 else label for label in row["labels"][:-1])]
    read = torch.tensor([row.get("decoder_input_ids", read)])
    logits = double(input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=read).logits[0]
    assert logits.dtype == torch.float64
    kept = labels != -100
    return logits[kept].log_softmax(-1).gather(-1, labels[kept][:, None]).squeeze(-1), kept


def hand_computed_loss(double, rows, normaliser, losses=lambda logprobs, row, kept: -logprobs):
    total, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        logprobs, kept = row_logprobs(double, row)
        weights = torch.tensor(row.get("token_weights", [row.get("weight", 1.0)] * len(kept)))[kept]
        weighted = weights.double() * losses(logprobs, row, kept)
        total = total + (weighted.mean() if normaliser == "example_mean" else weighted.sum())
        num_tokens += int(kept.sum())
    return total / (num_tokens if normaliser == "token_mean" else len(rows))


def hand_computed_gradient(model, rows, normaliser="token_mean", **more):
    double = copy.deepcopy(model).double()
    hand_computed_loss(double, rows, normaliser, **more).backward()
    gradients = [p.grad for p in double.parameters()]
    return torch.cat([g.flatten() for g in gradients])


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("accumulation", [1, 4, 8])
def test_gradient_equals_a_float64_hand_computation(
    build, train, architecture, normaliser, accumulation
):
    model, rows = build(architecture), ragged_rows(8)
    expected = hand_computed_gradient(model, rows, normaliser)
    trainer = train(
        model,
        rows,
        loss_normaliser=normaliser,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    assert relative_error(trainer.gradient, expected) < 1e-5  # float32 against float64
    (logged,) = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert logged == pytest.approx(
        hand_computed_loss(build(architecture).double(), rows, normaliser).item(), rel=1e-5
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unit_weights_are_the_models_own_loss(build, train, architecture):
    # In one batch with nothing to accumulate the model's own mean over tokens is right.
    model = build(architecture)
    rows = [row | {"weight": 1.0} for row in ragged_rows(8, weights=False)]
    for row in rows:
        row["labels"] = [max(label, 5) for label in row["labels"][:-1]] + [EOS]
    own = copy.deepcopy(model).double()
    longest = max(len(row["labels"]) for row in rows)
    widest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [PAD] * (widest - len(row["input_ids"])) for row in rows]
    mask = [[int(i < len(row["input_ids"])) for i in range(widest)] for row in rows]
    labels = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
    own(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        labels=torch.tensor(labels),
    ).loss.backward()
    expected = torch.cat([p.grad.flatten() for p in own.parameters()])
    assert relative_error(train(model, rows).gradient, expected) < 1e-5


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_weight_two_is_the_example_twice_and_weight_zero_is_none(build, train, architecture):
    rows = ragged_rows(4, weights=False)
    weighted = [row | {"weight": w} for row, w in zip(rows, (1.0, 2.0, 0.0, 1.0), strict=True)]
    repeated = [row | {"weight": 1.0} for row in (rows[0], rows[1], rows[1], rows[3])]
    gradients = [
        train(build(architecture), data, loss_normaliser="sequence_sum").gradient
        for data in (weighted, repeated)
    ]
    assert relative_error(gradients[0], gradients[1]) < 1e-5


def test_a_weight_per_label_stands_beside_its_label(build, train):
    rows = ragged_rows(6, weights=False)
    for number, row in enumerate(rows):
        row["token_weights"] = [0.25 * (1 + (number + i) % 5) for i in range(len(row["labels"]))]
    model = build("t5")
    expected = hand_computed_gradient(model, rows)
    assert relative_error(train(model, rows).gradient, expected) < 1e-5


def test_the_decoder_reads_what_the_data_set_says(build, train):
    # As for BART, whose completions begin with a token that is read and not learnt.
    rows = ragged_rows(6)
    for row in rows:
        row["decoder_input_ids"] = [EOS, 2, *row["labels"][1:-1]][: len(row["labels"])]
        row["labels"] = [-100, *row["labels"][1:]]
    model = build("bart")
    expected = hand_computed_gradient(model, rows)
    assert relative_error(train(model, rows).gradient, expected) < 1e-5


def dft(logprobs, row, kept):
    return -logprobs.exp().detach() * logprobs


def iw_sft(logprobs, row, kept):
    reference = torch.tensor(row[REFERENCE], dtype=torch.float64)[kept]
    known = ~reference.isnan()
    factor = (logprobs - reference)[known].mean().exp().clamp(0, 16).detach()
    return -factor * logprobs


def sft_kl(logprobs, row, kept):
    base = torch.tensor(row[BASE], dtype=torch.float64)[kept]
    q, p = base.nan_to_num(-1.0).exp(), logprobs.exp()
    kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    return -logprobs + 0.05 * torch.where(base.isnan(), 0.0, kl)


def chord_phi(logprobs, row, kept):
    p = logprobs.exp().detach()
    return -p * (1 - p) * logprobs


@pytest.mark.parametrize("loss", [dft, iw_sft, sft_kl, chord_phi])
def test_other_token_losses_are_those_of_their_definition(build, train, loss):
    rows = ragged_rows(8)
    generator = torch.Generator().manual_seed(5)
    for row in rows:
        stored = -4 * torch.rand(len(row["labels"]), generator=generator) - 0.5
        stored[-1] = float("nan")  # the end of the turn was not scored
        row[REFERENCE] = row[BASE] = stored.tolist()
    columns = token_loss({"name": loss.__name__}).columns
    rows = [
        {name: value for name, value in row.items() if name not in {REFERENCE, BASE} - {*columns}}
        for row in rows
    ]
    if loss is iw_sft:  # a row whose only learnt token was not scored has a ratio of one
        rows = [row for row in rows if sum(label != -100 for label in row["labels"]) > 1]
    model = build("t5")
    expected = hand_computed_gradient(model, rows, losses=loss)
    found = train(model, rows, token_loss=loss.__name__).gradient
    assert relative_error(found, expected) < 1e-5


def test_entropy_factors_are_those_of_the_whole_row_of_logits(build, train):
    rows, model = ragged_rows(8), build("bart")

    def by_hand(double):
        total, count = 0.0, 0
        for row in rows:
            logprobs, kept = row_logprobs(double, row)
            read = [EOS, *(PAD if label == -100 else label for label in row["labels"][:-1])]
            logits = double(
                input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=torch.tensor([read])
            ).logits[0][kept]
            top = logits.topk(20).values.log_softmax(-1).detach()
            factors = -(top.exp() * top).sum(-1) / torch.tensor(20.0).double().log()
            total, count = total - row["weight"] * (factors * logprobs).sum(), count + len(logprobs)
        return total / count

    double = copy.deepcopy(model).double()
    by_hand(double).backward()
    expected = torch.cat([p.grad.flatten() for p in double.parameters()])
    assert relative_error(train(model, rows, token_loss="eaft").gradient, expected) < 1e-5


def test_the_first_step_of_psft_is_that_of_the_probabilities_themselves(build, train):
    # At the start of a window every ratio is one, and its gradient that of the log-probability.
    rows, model = ragged_rows(8), build("t5")
    expected = hand_computed_gradient(model, rows)
    trainer = train(
        model, rows, token_loss="psft", gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    assert relative_error(trainer.gradient, expected) < 1e-5


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_the_loss_of_an_evaluation_is_exact_whatever_the_batches(
    build, bpe_tokenizer, tmp_path, normaliser
):
    model, rows = build("t5"), ragged_rows(7, seed=9)
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        expected = float(hand_computed_loss(double, rows, normaliser))
        plain = torch.cat([row_logprobs(double, row)[0] for row in rows])
    for batch_size in (1, 2, 7):
        trainer = WeightedSeq2SeqTrainer(
            model,
            arguments(tmp_path, per_device_eval_batch_size=batch_size, loss_normaliser=normaliser),
            train_dataset=Dataset.from_list(rows),
            eval_dataset={"a": Dataset.from_list(rows), "b": Dataset.from_list(rows[:3])},
            processing_class=bpe_tokenizer,
        )
        found = trainer.evaluate()
        assert found["eval_a_loss"] == pytest.approx(expected, rel=1e-6)
        assert found["eval_a_nll"] == pytest.approx(float(-plain.mean()), rel=1e-6)
        assert found["eval_b_loss"] != pytest.approx(expected, rel=1e-2)
        again = trainer.evaluate(Dataset.from_list(rows))
        assert again["eval_loss"] == pytest.approx(expected, rel=1e-6)
        without = [{k: v for k, v in row.items() if k != "weight"} for row in rows]
        unweighted = trainer.evaluate(Dataset.from_list(without))["eval_loss"]
        with torch.no_grad():
            right = float(hand_computed_loss(double, without, normaliser))
        assert unweighted == pytest.approx(right, rel=1e-6)


def test_what_is_logged_are_means_over_the_step(build, train):
    model, rows = build("t5"), ragged_rows(8)
    with torch.no_grad():
        double = copy.deepcopy(model).double()
        found = [row_logprobs(double, row)[0] for row in rows]
    counts = torch.tensor([len(row) for row in found]).double()
    weights = torch.tensor([row["weight"] for row in rows]).double()
    log = train(model, rows).state.log_history[0]
    assert log["nll"] == pytest.approx(float(-torch.cat(found).mean()), rel=1e-5)
    assert log["mean_weight"] == pytest.approx(float((weights * counts).sum() / counts.sum()))
    ess = float(weights.sum() ** 2 / weights.square().sum())
    assert log["effective_sample_size"] == pytest.approx(ess, rel=1e-5)
    assert log["num_tokens"] == sum(len(row["input_ids"]) + len(row["labels"]) for row in rows)
    assert 0 < log["end_of_turn_probability"] < 1


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_adapters_have_the_gradients_of_their_definition(build, train, architecture):
    peft = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")
    model, rows = build(architecture), ragged_rows(8)
    trainer = train(
        copy.deepcopy(model),
        rows,
        peft_config=peft,
        max_steps=3,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
    )
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    merged = trainer.model.merge_and_unload()
    changed = {
        name
        for (name, new), old in zip(
            merged.state_dict().items(), model.state_dict().values(), strict=True
        )
        if not torch.equal(new, old)
    }
    assert any("encoder" in name for name in changed)
    assert any("decoder" in name for name in changed)
    assert not any("lm_head" in name or "shared" in name for name in changed)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    first = hand_computed_loss(model.double(), rows, "token_mean").item()
    assert losses[0] == pytest.approx(first, rel=1e-5)  # adapters begin at zero
    assert losses[-1] < losses[0]


def test_the_model_still_generates_and_gives_its_own_logits(build, train):
    model = build("t5")
    trainer = train(model, ragged_rows(8))
    ids = torch.tensor([[5, 6, 7]])
    fresh = build("t5")
    fresh.load_state_dict(trainer.model.state_dict())
    for one in (trainer.model.eval(), fresh.eval()):
        one.generation_config.max_new_tokens = 5
    assert torch.equal(trainer.model.generate(ids), fresh.generate(ids))
    with torch.no_grad():
        logits = [m(input_ids=ids, decoder_input_ids=ids).logits for m in (trainer.model, fresh)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_normaliser": "batch"}, "token_mean, sequence_sum, example_mean"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"predict_with_generate": True}, "predict_with_generate"),
        ({"token_loss": "dtf"}, "dtf"),
    ],
)
def test_options_that_cannot_be_right_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        arguments(tmp_path, **changes)


@pytest.mark.parametrize(
    "name",
    ["compute_loss_func", "data_collator", "compute_metrics", "preprocess_logits_for_metrics"],
)
def test_what_the_trainer_does_itself_cannot_be_given(build, bpe_tokenizer, tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name} cannot be combined"):
        WeightedSeq2SeqTrainer(
            build("t5"),
            arguments(tmp_path),
            train_dataset=Dataset.from_list(ragged_rows(2)),
            processing_class=bpe_tokenizer,
            **{name: lambda *_: None},
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda row: row.pop("weight"), WeightError, "no column 'weight'"),
        (lambda row: row.update(weight=-1.0), WeightError, r"-1.0 in row 0"),
        (lambda row: row.pop("labels"), DataError, "input_ids, labels"),
        (
            lambda row: row.update(decoder_input_ids=[0]),
            DataError,
            "row 0: 1 numbers in 'decoder_input_ids'",
        ),
        (
            lambda row: row.update(token_weights=[1.0] * 99),
            DataError,
            "row 0: 99 numbers in 'token_weights'",
        ),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(build, train, change, error, message):
    rows = ragged_rows(3)
    for row in rows:
        change(row)
    with pytest.raises(error, match=message):
        train(build("t5"), rows)


def test_a_loss_without_its_scores_is_refused(build, train):
    with pytest.raises(DataError, match="reference_logprobs"):
        train(build("t5"), ragged_rows(3), token_loss="iw_sft")


def test_a_causal_model_and_one_without_a_start_are_refused(build, train):
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with pytest.raises(ConfigError, match="use WeightedSFTTrainer"):
        train(Qwen2ForCausalLM(config), ragged_rows(2))
    model = build("t5")
    model.config.decoder_start_token_id = None
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        train(model, ragged_rows(2))


# PEFT says so of every head that may be tied, before we refuse it.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_on_the_head_is_refused(build, train):
    peft = LoraConfig(r=4, target_modules=["lm_head"], task_type="SEQ_2_SEQ_LM")
    with pytest.raises(ConfigError, match="lm_head"):
        train(build("t5, untied"), ragged_rows(2), peft_config=peft)


def test_options_of_generate_are_refused_by_evaluate(build, train):
    trainer = train(build("t5"), ragged_rows(2))
    with pytest.raises(ConfigError, match="max_length has no effect"):
        trainer.evaluate(Dataset.from_list(ragged_rows(2)), max_length=5)


class Words:
    """As much of a tokenizer as the trainer asks for."""

    pad_token_id, eos_token_id, model_input_names = PAD, EOS, ("input_ids",)


def in_ranks(batch_size, out):
    """Two steps, and an evaluation of rows that do not fill the last batch of every rank."""
    options = arguments(
        out.parent,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_steps=2,
    )
    before, trainer = (
        WeightedSeq2SeqTrainer(
            built("t5"),
            options,
            train_dataset=Dataset.from_list(ragged_rows(16)),
            eval_dataset=Dataset.from_list(ragged_rows(9, seed=4)),
            processing_class=Words(),
        )
        for _ in range(2)
    )
    found = [before.evaluate()]
    if trainer.accelerator.num_processes > 1:
        with pytest.raises(ConfigError, match="evaluate was called before train"):
            before.train()
    trainer.train()
    found += [log for log in trainer.state.log_history if "loss" in log]
    found += [trainer.evaluate()]
    if trainer.accelerator.is_main_process:
        out.write_text(json.dumps(found))


def test_two_ranks_take_the_steps_and_give_the_evaluation_of_one(tmp_path):
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--max-restarts=2", f"--nproc_per_node={ranks}"]
        command += [__file__, str(4 // ranks), str(out)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found.append(json.loads(out.read_text()))
    rows = ragged_rows(9, seed=4)
    with torch.no_grad():
        expected = hand_computed_loss(built("t5").double(), rows, "token_mean").item()
    assert found[0][0]["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert len(found[0]) == 4
    for one, two in zip(*found, strict=True):
        names = {"loss", "grad_norm", "mean_weight", "effective_sample_size", "num_tokens", "nll"}
        names |= {"eval_loss", "eval_nll", "eval_weighted_nll", "eval_end_of_turn_probability"}
        shared = names & set(one)
        assert len(shared) in (4, 6)
        for name in shared:
            assert two[name] == pytest.approx(one[name], rel=1e-5)  # float32, two steps


if __name__ == "__main__":
    in_ranks(int(sys.argv[1]), Path(sys.argv[2]))
