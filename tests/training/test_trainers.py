"""`WeightedSFTTrainer` against a float64 hand computation, which also finds what it must not do."""

import copy

import pytest
import torch
from datasets import Dataset

from atlantis.errors import ConfigError, WeightError
from atlantis.training.trainers import WeightedSFTConfig, WeightedSFTTrainer

END_OF_TURN = 0  # the tokenizer's
NORMALISERS = ("token_mean", "example_mean", "sequence_sum")
LAYOUTS = {
    "padded": {},
    "packed": {"packing": True, "max_length": 32},
    "padding_free": {"padding_free": True, "max_length": None},
}
NUM_ROWS, NUM_PACKED = 24, 8
TOLERANCE = 1e-5  # float32 against float64


def ragged_rows(num_rows: int = NUM_ROWS) -> list[dict]:
    """Lopsided weights; some rows have no prompt."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(num_rows):
        length = int(torch.randint(4, 14, (1,), generator=generator))
        boundary = int(torch.randint(0, length - 1, (1,), generator=generator))
        ids = torch.randint(2, 320, (length - 1,), generator=generator).tolist()
        ids.append(END_OF_TURN)
        weight = float(torch.randn(1, generator=generator).mul(1.5).exp())
        labels = [-100] * boundary + ids[boundary:]
        rows.append({"input_ids": ids, "labels": labels, "weight": weight})
    return rows


def normaliser_of(rows: list[dict], normaliser: str) -> int:
    """Trained tokens or examples; neither looks at the weights."""
    if normaliser != "token_mean":
        return len(rows)
    return sum(label != -100 for row in rows for label in row["labels"][1:])


def hand_computed_gradient(model, rows: list[dict], normaliser: str) -> torch.Tensor:
    """The definition, one example at a time in float64, from the model's own logits."""
    double = copy.deepcopy(model).double()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logprobs = double(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        targets = torch.tensor(row["labels"])[1:]
        kept = targets != -100
        nll = -logprobs[kept].gather(-1, targets[kept][:, None]).sum()
        total = total + row["weight"] * (nll / kept.sum() if normaliser == "example_mean" else nll)
    (total / normaliser_of(rows, normaliser)).backward()
    return torch.cat([p.grad.flatten() for p in double.parameters()])


class KeepsGradient(WeightedSFTTrainer):
    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)

        def keep(*_):
            self.gradient = torch.cat([p.grad.flatten().double() for p in self.model.parameters()])

        optimizer.register_step_pre_hook(keep)
        return optimizer


def arguments(folder, **changes) -> WeightedSFTConfig:
    return WeightedSFTConfig(
        output_dir=str(folder),
        **{
            "max_steps": 1,
            "max_grad_norm": 1e9,
            "save_strategy": "no",
            "report_to": "none",
            "activation_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "seed": 3,
        }
        | changes,
    )


@pytest.fixture
def model(tiny_model):
    return tiny_model("qwen2").train()


@pytest.fixture
def gradient(model, bpe_tokenizer, tmp_path):
    """Gradient of one optimizer step over all rows, in so many micro-batches."""

    def train(
        rows,
        layout="padded",
        *,
        accumulation=1,
        trainer_class=KeepsGradient,
        tokenizer=None,
        **more,
    ):
        packed = layout == "packed" and accumulation > 1
        changes = {
            "per_device_train_batch_size": (NUM_PACKED if packed else len(rows)) // accumulation,
            "gradient_accumulation_steps": accumulation,
        }
        trainer = trainer_class(
            copy.deepcopy(model),
            arguments(tmp_path, **changes, **LAYOUTS[layout], **more),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer or bpe_tokenizer,
        )
        trainer.train()
        assert trainer.state.epoch == 1.0
        assert trainer.current_gradient_accumulation_steps == accumulation
        return trainer.gradient

    return train


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("accumulation", [1, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_equals_a_float64_hand_computation(
    model, gradient, layout, accumulation, normaliser
):
    rows = ragged_rows()
    expected = hand_computed_gradient(model, rows, normaliser)
    found = gradient(rows, layout, accumulation=accumulation, loss_normaliser=normaliser)
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_two_is_the_example_twice_up_to_the_normaliser(gradient, layout, normaliser):
    rows = ragged_rows()
    doubled = [{**row, "weight": row["weight"] * (1 + (i == 7))} for i, row in enumerate(rows)]
    sums = [
        gradient(data, layout, loss_normaliser=normaliser) * normaliser_of(data, normaliser)
        for data in (doubled, [*rows, rows[7]])
    ]
    assert relative_error(*sums) < TOLERANCE


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_zero_is_the_example_absent_up_to_the_normaliser(gradient, layout, normaliser):
    # The normaliser counts it all the same: weights have mean one over the data set.
    rows = ragged_rows()
    silenced = [{**row, "weight": row["weight"] * (i != 7)} for i, row in enumerate(rows)]
    sums = [
        gradient(data, layout, loss_normaliser=normaliser) * normaliser_of(data, normaliser)
        for data in (silenced, [*rows[:7], *rows[8:]])
    ]
    assert relative_error(*sums) < TOLERANCE


def test_an_end_of_turn_that_is_also_the_padding_is_trained(model, gradient, bpe_tokenizer):
    tokenizer = copy.deepcopy(bpe_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    rows = ragged_rows()
    expected = hand_computed_gradient(model, rows, "token_mean")
    assert relative_error(gradient(rows, tokenizer=tokenizer), expected) < TOLERANCE


class NormalisesEachMicroBatch(KeepsGradient):
    """Means of micro-batches, averaged: their tokens do not count alike."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        own = inputs["token_counts"][:, 1:].sum() * self.current_gradient_accumulation_steps
        return super().compute_loss(model, inputs, return_outputs, own)


class LetsWeightsCancel(KeepsGradient):
    """Divides a micro-batch by its own weights: alone in one, every example has weight one."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        own = inputs["token_weights"][:, 1:].sum() * self.current_gradient_accumulation_steps
        return super().compute_loss(model, inputs, return_outputs, own)


class DividesBySteps(KeepsGradient):
    """Lets the Trainer divide again by the accumulation steps."""

    loss_is_scaled_for_ga = False


class MasksEndsOfTurn(KeepsGradient):
    """Takes the end of a turn for padding."""

    def _prepare_dataset(self, dataset, *args):
        labels = [[-100 if y == END_OF_TURN else y for y in row] for row in dataset["labels"]]
        return super()._prepare_dataset(
            dataset.remove_columns("labels").add_column("labels", labels), *args
        )


class ForgetsWeights(KeepsGradient):
    """What stock TRL does with a column of weights."""

    def _prepare_dataset(self, dataset, *args):
        ones = [1.0] * len(dataset)
        return super()._prepare_dataset(
            dataset.remove_columns("weight").add_column("weight", ones), *args
        )


class WeighsPackedRowsByPosition(KeepsGradient):
    """The packer did not carry the weights: a packed row takes that of the row at its place."""

    def _prepare_dataset(self, dataset, *args):
        packed = super()._prepare_dataset(dataset, *args)
        placed = zip(packed["token_counts"], dataset["weight"], strict=False)
        weights = [[weight if count else 0.0 for count in row] for row, weight in placed]
        return packed.remove_columns("token_weights").add_column("token_weights", weights)


class WeighsTheTokenBefore(KeepsGradient):
    """Weights and next tokens are a position apart."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["token_weights"] = inputs["token_weights"].roll(1, dims=1)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


EVERY_LAYOUT = (
    NormalisesEachMicroBatch,
    LetsWeightsCancel,
    DividesBySteps,
    MasksEndsOfTurn,
    ForgetsWeights,
    WeighsTheTokenBefore,
)
MUTANTS = [(mutant, layout) for mutant in EVERY_LAYOUT for layout in LAYOUTS]
MUTANTS.append((WeighsPackedRowsByPosition, "packed"))


@pytest.mark.parametrize(("mutant", "layout"), MUTANTS)
def test_the_hand_computation_finds_every_mutant(model, gradient, mutant, layout):
    rows = ragged_rows()
    expected = hand_computed_gradient(model, rows, "token_mean")
    found = gradient(rows, layout, accumulation=4, trainer_class=mutant)
    assert relative_error(found, expected) > 1000 * TOLERANCE


def test_a_training_set_without_weights_is_refused(model, bpe_tokenizer, tmp_path):
    with pytest.raises(WeightError, match="no column 'weight'"):
        WeightedSFTTrainer(
            model,
            arguments(tmp_path),
            train_dataset=Dataset.from_list(ragged_rows(4)).remove_columns("weight"),
            processing_class=bpe_tokenizer,
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -0.5], "-0.5 in row 1"),
        ([1.0, float("nan")], "nan in row 1"),
        ([0.0, 0.0], "sum to zero"),
    ],
)
def test_unusable_weights_are_refused(model, bpe_tokenizer, tmp_path, weights, message):
    rows = Dataset.from_list(ragged_rows(2)).remove_columns("weight").add_column("weight", weights)
    with pytest.raises(WeightError, match=message):
        WeightedSFTTrainer(
            model,
            arguments(tmp_path),
            train_dataset=rows,
            processing_class=bpe_tokenizer,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_normaliser": "batch"}, "token_mean, sequence_sum, example_mean"),
        ({"dft_floor": 0.1}, "no effect"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"packing": True, "packing_strategy": "wrapped"}, "splits examples"),
    ],
)
def test_options_that_cannot_be_right_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        arguments(tmp_path, **changes)


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_size", [1, 5, NUM_ROWS])
def test_the_loss_of_an_evaluation_is_over_all_rows_whatever_the_batches(
    model, bpe_tokenizer, tmp_path, layout, normaliser, batch_size
):
    rows = ragged_rows()
    options = {"per_device_eval_batch_size": batch_size, "loss_normaliser": normaliser}
    trainer = WeightedSFTTrainer(
        model,
        arguments(tmp_path, **options, **LAYOUTS[layout]),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=bpe_tokenizer,
    )
    found = trainer.evaluate()
    total, plain, num_tokens = 0.0, 0.0, normaliser_of(rows, "token_mean")
    for row in rows:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([row["input_ids"]])).logits.double()
        logprobs, targets = logits[0, :-1].log_softmax(-1), torch.tensor(row["labels"])[1:]
        kept = targets != -100
        nll = -float(logprobs[kept].gather(-1, targets[kept][:, None]).sum())
        total += row["weight"] * (nll / int(kept.sum()) if normaliser == "example_mean" else nll)
        plain += nll
    assert found["eval_loss"] == pytest.approx(total / normaliser_of(rows, normaliser), rel=1e-5)
    assert found["eval_nll"] == pytest.approx(plain / num_tokens, rel=1e-5)
