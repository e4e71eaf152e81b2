"""Every token loss through the trainer, against its definition in float64, example by example."""

import copy
import math

import pytest
import torch
from datasets import Dataset

from atlantis.errors import ConfigError, DataError
from atlantis.training.collation import logprob_column
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

END_OF_TURN = 0  # the tokenizer's
NAN = math.nan

LOSSES = {
    "sft": {},
    "sft_kl": {"kl_weight": 0.3},
    "dft": {"floor": 0.05, "beta": 0.5, "full_end_of_turn": True},
    "asft": {"kl_weight": 0.3, "beta": 2.0},
    "iw_sft": {"temperature": 0.7, "high": 1.5},
    "iw_sft_token": {},
    "chord_phi": {},
    "eaft": {"top_k": 7, "power": 1.5},
    "psft": {"window_steps": 2},
}
BATCHES = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "packed": {"packing": True, "max_length": 32},
    "padding_free": {"padding_free": True, "max_length": None, "pad_to_multiple_of": 16},
}


def make_rows(num_rows=8):
    """Ragged rows; a reference that did not score the ends of turns, as by default."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(num_rows):
        length = int(torch.randint(4, 14, (1,), generator=generator))
        boundary = int(torch.randint(1, length - 1, (1,), generator=generator))
        ids = [*torch.randint(2, 320, (length - 1,), generator=generator).tolist(), END_OF_TURN]
        scored = range(boundary, length - 1 if number % 2 else length)
        others = -8 * torch.rand(2, length, generator=generator, dtype=torch.float64)
        others[1] /= 20  # a base that is sure, so that the divergence matters
        rows.append(
            {
                "input_ids": ids,
                "labels": [-100] * boundary + ids[boundary:],
                "weight": float(torch.randn(1, generator=generator).mul(1.5).exp()),
                "reference_logprobs": [
                    others[0, t].item() if t in scored else NAN for t in range(length)
                ],
                "base_logprobs": [
                    others[1, t].item() if t in scored else NAN for t in range(length)
                ],
            }
        )
    return rows


def defined_loss(name, row, logprobs, old_logprobs):
    """Sum over the tokens of one example; what is constant is plain Python.

    The log-probabilities are ``[position, vocabulary]``, the old ones under the policy at the start
    of the window.
    """
    settings, total = LOSSES[name], 0.0
    trained = [t for t in range(1, len(row["labels"])) if row["labels"][t] != -100]
    targets = {t: logprobs[t - 1, row["input_ids"][t]] for t in trained}
    ratios = {
        t: targets[t].item() - row["reference_logprobs"][t]
        for t in trained
        if not math.isnan(row["reference_logprobs"][t])
    }
    for t, logprob in targets.items():
        p, end = math.exp(logprob.item()), row["input_ids"][t] == END_OF_TURN
        factor = 1.0
        if name == "dft":
            factor = 1.0 if end else max(p, 0.05) ** 0.5
        elif name == "asft":
            factor = p**2
        elif name == "chord_phi":
            factor = p * (1 - p)
        elif name == "iw_sft":
            factor = min(math.exp(0.7 * sum(ratios.values()) / len(ratios)), 1.5)
        elif name == "iw_sft_token":
            factor = min(max(math.exp(ratios[t]), 0.2), 1.8) if t in ratios else 1.0
        elif name == "eaft":
            top = sorted((math.exp(x) for x in logprobs[t - 1].tolist()), reverse=True)[:7]
            shares = [x / sum(top) for x in top]
            factor = (-sum(x * math.log(x) for x in shares) / math.log(7)) ** 1.5
        if name == "psft":
            ratio = (logprob - old_logprobs[t - 1, row["input_ids"][t]].item()).exp()
            total = total - torch.minimum(ratio, ratio.clamp(0.8, 1.28))
        else:
            total = total - factor * logprob
        base = row["base_logprobs"][t]
        if settings.get("kl_weight") and not math.isnan(base):
            q, p = math.exp(base), logprob.exp()
            kl = q * (math.log(q) - p.log()) + (1 - q) * (math.log(1 - q) - (1 - p).log())
            total = total + settings["kl_weight"] * kl
    return total, len(trained)


def defined_gradient(name, model, rows, normaliser="token_mean", old_model=None):
    double = copy.deepcopy(model).double()
    old = double if old_model is None else copy.deepcopy(old_model).double()
    total, num_tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logprobs, old_logprobs = (m(ids).logits[0].log_softmax(-1) for m in (double, old))
        loss, count = defined_loss(name, row, logprobs, old_logprobs)
        total = total + row["weight"] * (loss / count if normaliser == "example_mean" else loss)
        num_tokens += count
    double.zero_grad()
    (total / (num_tokens if normaliser == "token_mean" else len(rows))).backward()
    return torch.cat([p.grad.flatten() for p in double.parameters()])


class KeepsGradients(WeightedSFTTrainer):
    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        self.gradients, self.policies = [], []

        def keep(*_):
            parameters = list(self.model.parameters())
            self.gradients.append(torch.cat([p.grad.flatten().double() for p in parameters]))
            self.policies.append(copy.deepcopy(self.model.state_dict()))

        optimizer.register_step_pre_hook(keep)
        return optimizer


@pytest.fixture
def trained(bpe_tokenizer, tmp_path):
    def train(model, rows, **changes):
        trainer = KeepsGradients(
            copy.deepcopy(model).train(),
            WeightedSFTConfig(
                output_dir=str(tmp_path),
                **{
                    "per_device_train_batch_size": 8,
                    "logging_steps": 1,
                    "max_steps": 1,
                    "max_grad_norm": 1e9,
                    "save_strategy": "no",
                    "report_to": "none",
                    "activation_checkpointing": False,
                    "bf16": False,
                    "use_cpu": True,
                }
                | changes,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=bpe_tokenizer,
        )
        trainer.train()
        return trainer

    return train


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_definition(tiny_model, trained, name, batches):
    model, rows = tiny_model("qwen2"), make_rows()
    expected = defined_gradient(name, model, rows)
    trainer = trained(model, rows, token_loss={"name": name} | LOSSES[name], **BATCHES[batches])
    assert (len(trainer.train_dataset) < 8) == (batches == "packed")
    assert relative_error(trainer.gradients[0], expected) < 2e-5  # float32 against float64
    if name not in ("sft", "psft"):  # the first step of a window has ratios of one
        assert relative_error(defined_gradient("sft", model, rows), expected) > 0.01


@pytest.mark.parametrize("normaliser", ["example_mean", "sequence_sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_normaliser_goes_with_every_loss(tiny_model, trained, name, normaliser):
    model, rows = tiny_model("qwen2"), make_rows()
    trainer = trained(
        model,
        rows,
        token_loss={"name": name} | LOSSES[name],
        loss_normaliser=normaliser,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    expected = defined_gradient(name, model, rows, normaliser)
    assert relative_error(trainer.gradients[0], expected) < 2e-5


@pytest.mark.parametrize("name", ["eaft", "iw_sft", "asft"])
def test_other_architectures_have_the_same_losses(tiny_model, trained, name):
    # Gemma 2 bends its logits; its entropy has to be of the bent ones.
    model, rows = tiny_model("gemma2"), make_rows()
    trainer = trained(model, rows, token_loss={"name": name} | LOSSES[name])
    assert relative_error(trainer.gradients[0], defined_gradient(name, model, rows)) < 2e-5


def test_a_proximal_window_keeps_the_policy_of_its_start(tiny_model, trained):
    model, rows = tiny_model("qwen2"), make_rows(16)
    trainer = trained(
        model,
        rows,
        token_loss={"name": "psft", "window_steps": 2},
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.3,
        lr_scheduler_type="constant",
        max_steps=4,
    )
    policies = []
    for weights in trainer.policies:
        policies.append(copy.deepcopy(model))
        policies[-1].load_state_dict(weights)
    for step, start in enumerate([0, 0, 2, 2]):
        expected = defined_gradient(
            "psft",
            policies[step],
            rows[4 * step : 4 * step + 4],
            old_model=policies[start],
        )
        assert relative_error(trainer.gradients[step], expected) < 2e-5
    moved = defined_gradient("psft", policies[1], rows[4:8])
    assert relative_error(trainer.gradients[1], moved) > 0.01  # the ratios were not one


def test_a_short_last_window_and_a_new_epoch_are_windows_too(tiny_model, trained):
    trainer = trained(
        tiny_model("qwen2"),
        make_rows(10),
        token_loss={"name": "psft", "window_steps": 3},
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=7,
    )
    assert trainer.state.global_step == 7
    assert trainer.state.epoch == pytest.approx(2.4)


def test_what_is_logged_is_what_its_name_says(tiny_model, trained):
    model, rows = tiny_model("qwen2"), make_rows()
    logs = [
        trained(
            model,
            rows,
            token_loss="chord_phi",
            loss_normaliser=normaliser,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        ).state.log_history[0]
        for normaliser, accumulation in [("token_mean", 1), ("example_mean", 1), ("token_mean", 4)]
    ]
    double = copy.deepcopy(model).double()
    logprobs, weights, ends, counts = [], [], [], []
    for row in rows:
        predicted = double(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        kept = [t for t in range(1, len(row["labels"])) if row["labels"][t] != -100]
        logprobs += [predicted[t - 1, row["input_ids"][t]].item() for t in kept]
        weights += [row["weight"]] * len(kept)
        ends += [row["input_ids"][t] == END_OF_TURN for t in kept]
        counts.append(len(kept))
    own = [row["weight"] for row in rows]
    ess = sum(own) ** 2 / sum(w * w for w in own)
    weighted = -sum(w * x for w, x in zip(weights, logprobs, strict=True)) / sum(weights)
    end = sum(math.exp(x) for x, e in zip(logprobs, ends, strict=True) if e) / 8
    loss = -sum(
        w * math.exp(x) * (1 - math.exp(x)) * x for w, x in zip(weights, logprobs, strict=True)
    ) / len(logprobs)
    for log in logs[:2]:
        assert log["nll"] == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-5)
        assert log["weighted_nll"] == pytest.approx(weighted, rel=1e-5)
        assert log["end_of_turn_probability"] == pytest.approx(end, rel=1e-4)
    for log in logs:  # of the whole step, over its micro-batches
        assert log["effective_sample_size"] == pytest.approx(ess, rel=1e-5)
    for log in (logs[0], logs[2]):
        assert log["loss"] == pytest.approx(loss, rel=1e-5)
        assert log["mean_weight"] == pytest.approx(sum(weights) / len(weights), rel=1e-5)
    assert logs[1]["mean_weight"] == pytest.approx(sum(own) / 8, rel=1e-5)


def test_the_examples_of_packed_rows_are_counted_one_by_one(tiny_model, trained):
    rows = make_rows()
    log = trained(tiny_model("qwen2"), rows, packing=True, max_length=32).state.log_history[0]
    own = [row["weight"] for row in rows]
    expected = sum(own) ** 2 / sum(w * w for w in own)
    assert log["effective_sample_size"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["iw_sft", "sft_kl", "psft", "eaft"])
def test_an_evaluation_set_is_measured_with_the_same_loss(tiny_model, trained, name):
    trainer = trained(tiny_model("qwen2"), make_rows(), token_loss=name)
    held_out = Dataset.from_list(make_rows(4)).remove_columns("weight")
    metrics = trainer.evaluate(held_out)
    assert math.isfinite(metrics["eval_loss"])
    if name == "psft":
        assert metrics["eval_loss"] == pytest.approx(-1.0, rel=1e-6)


def test_columns_are_cut_with_the_rows(tiny_model, trained):
    rows = make_rows()
    cut = [
        row | {name: row[name][:9] for name in ("input_ids", "labels", "reference_logprobs")}
        for row in rows
        if len([x for x in row["labels"][:9] if x != -100]) > 0
    ]
    kept = [row for row in rows if len([x for x in row["labels"][:9] if x != -100]) > 0]
    model = tiny_model("qwen2")
    found = trained(model, kept, token_loss="iw_sft", max_length=9).gradients[0]
    expected = trained(model, cut, token_loss="iw_sft").gradients[0]
    assert len(kept) > 4
    assert relative_error(found, expected) < 1e-6  # the same float32 operations


def spoiled(change):
    rows = make_rows(2)
    change(rows[1])
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (spoiled(lambda row: row["reference_logprobs"].append(-1.0)), "row 1: .* numbers in"),
        (
            spoiled(lambda row: row.update(reference_logprobs=[NAN] * len(row["input_ids"]))),
            "row 1, column 'reference_logprobs': none of the trained tokens",
        ),
        (
            spoiled(lambda row: row.update(reference_logprobs=[0.5] * len(row["input_ids"]))),
            "0.5 is no log-probability",
        ),
        (
            spoiled(lambda row: row.update(reference_logprobs=[-math.inf] * len(row["labels"]))),
            "-inf is no log-probability",
        ),
    ],
)
def test_unusable_logprobs_are_refused(tiny_model, trained, rows, message):
    with pytest.raises(DataError, match=message):
        trained(tiny_model("qwen2"), rows, token_loss="iw_sft")


def test_a_missing_column_is_refused(tiny_model, trained):
    rows = [{k: v for k, v in row.items() if k != "base_logprobs"} for row in make_rows()]
    with pytest.raises(DataError, match="a column 'base_logprobs'"):
        trained(tiny_model("qwen2"), rows, token_loss="asft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_loss": "eatf"}, "unknown 'eatf'; did you mean 'eaft'"),
        ({"token_loss": {"name": "eaft", "beta": 1.0}}, "unknown key"),
        ({"token_loss": {"name": "iw_sft", "low": 3.0, "high": 2.0}}, "must be less than high"),
        ({"token_loss": {"name": "psft", "window_steps": 1}}, "greater than or equal to 2"),
        ({"token_loss": "eaft", "loss_type": "dft"}, "replaces loss_type 'dft'"),
        ({"loss_type": "dft", "dft_floor": 1.5}, "floor"),
    ],
)
def test_losses_that_cannot_be_meant_are_refused(tmp_path, changes, message):
    plain = {"bf16": False, "activation_checkpointing": False}
    with pytest.raises(ConfigError, match=message):
        WeightedSFTConfig(output_dir=str(tmp_path), use_cpu=True, **plain, **changes)


def test_a_loss_may_be_given_as_text_and_survives_a_copy_of_the_options(tmp_path):
    config = WeightedSFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        token_loss='{"name": "eaft", "power": 2.0}',
    )
    assert config.chosen_loss().power == 2.0
    assert '"power": 2.0' in config.to_json_string()


def test_stored_logprobs_stand_where_their_tokens_are():
    column = logprob_column(5, (1, 3), (-0.5, -2.0))
    assert [value for value in column if not math.isnan(value)] == [-0.5, -2.0]
    assert (column[1], column[3]) == (-0.5, -2.0)
    with pytest.raises(ValueError, match="shorter"):
        logprob_column(5, (1, 3), (-0.5,))
