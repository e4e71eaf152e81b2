"""`WeightedSFTTrainer`: TRL's `SFTTrainer` with a weight per example, exact at every boundary.

What it changes of its parent: the data set keeps a ``weight`` column (stock TRL drops it without a
word), the collator carries it per token, the loss multiplies by it, and the normaliser is counted
over the whole optimizer step, all micro-batches and ranks. Nothing else.
"""

import types
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from atlantis.errors import ConfigError, WeightError
from atlantis.models.head import target_logprobs
from atlantis.numerics.losses import dft_factors, weighted_nll
from atlantis.training.collation import (
    WEIGHT_COLUMNS,
    Normaliser,
    WeightedCollator,
    check_weights,
    token_columns,
)

_HEAD_CHUNK_SIZE = 1024


@dataclass
class WeightedSFTConfig(SFTConfig):
    """`trl.SFTConfig` and how the weighted loss is normalised.

    ``loss_type`` is TRL's own: ``nll`` or ``dft``. Both are multiplied by the weights.
    """

    loss_normaliser: str = field(
        default="token_mean",
        metadata={"help": "Normaliser of a step: token_mean, example_mean or sequence_sum."},
    )
    dft_floor: float = field(
        default=0.0, metadata={"help": "Smallest token probability used by the DFT factor."}
    )
    dft_beta: float = field(
        default=1.0, metadata={"help": "Power of the token probability in the DFT factor."}
    )
    dft_full_end_of_turn: bool = field(
        default=False,
        metadata={"help": "Train the end-of-turn token with factor one, so that DFT learns it."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = Normaliser.__args__  # pyright: ignore[reportAttributeAccessIssue]
        if self.loss_normaliser not in allowed:
            raise ConfigError(
                f"loss_normaliser {self.loss_normaliser!r}: choose one of {', '.join(allowed)}"
            )
        changed = (self.dft_floor, self.dft_beta, self.dft_full_end_of_turn) != (0.0, 1.0, False)
        if changed and self.loss_type != "dft":
            raise ConfigError(f"dft_* options have no effect with loss_type {self.loss_type!r}")
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor is not defined for a weighted loss; set it to 0"
            )
        if self.packing and self.packing_strategy != "bfd":
            raise ConfigError(
                f"packing_strategy {self.packing_strategy!r} splits examples, so that a weight per "
                "example is no longer defined; use 'bfd'"
            )


class WeightedSFTTrainer(SFTTrainer):
    r"""Importance-weighted supervised fine-tuning.

    .. math:: L = \frac{1}{N} \sum_i w_i \sum_t g_{it} \cdot (-\log p_\theta(y_{it} \mid \dots))

    Takes what `trl.SFTTrainer` takes. The training set needs a column ``weight`` (one float per
    example) or, when it is tokenized already, ``token_weights`` (one per token of ``input_ids``).
    An evaluation set without either counts every example once. With unit weights the loss, the
    gradients and the steps are those of `trl.SFTTrainer`.

    Raises:
        WeightError: The training set has no weights, or unusable ones.
        ConfigError: An option cannot be combined with weights.
    """

    # The normaliser covers the whole accumulated batch: the Trainer must not divide again.
    loss_is_scaled_for_ga = True
    args: WeightedSFTConfig

    def __init__(
        self, model: str | PreTrainedModel, args: WeightedSFTConfig, **kwargs: Any
    ) -> None:
        _refuse_unweightable(kwargs)
        _require_weights(kwargs.get("train_dataset"))
        super().__init__(model, args, **kwargs)
        _refuse_parallelism(self.accelerator)
        # Not passed to the parent, which refuses a collator when batches are flattened.
        stock: Any = self.data_collator
        self.data_collator = WeightedCollator(
            pad_token_id=stock.pad_token_id,
            padding_free=stock.padding_free,
            pad_to_multiple_of=stock.pad_to_multiple_of,
        )
        if self.args.device.type == "cpu":
            _use_compact_head(self.accelerator.unwrap_model(self.model))

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset:
        prepared: Any = super()._prepare_dataset(
            dataset, processing_class, args, False, formatting_func, dataset_name
        )
        if set(WEIGHT_COLUMNS) <= set(prepared.column_names):
            return prepared  # `evaluate` prepares its data set a second time
        weighted = _with_token_columns(prepared, args.loss_normaliser)
        if not packing:
            return weighted
        packed = pack_dataset(weighted, args.max_length, args.packing_strategy)
        return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        columns.extend(column for column in WEIGHT_COLUMNS if column not in columns)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Tensor]], device: torch.device
    ) -> Tensor | None:
        """The normaliser N of one optimizer step: counts of all its micro-batches and ranks."""
        if not batch_samples:
            return None
        count = torch.stack(
            [batch["token_counts"][:, 1:].double().sum() for batch in batch_samples]
        ).sum()
        count = count.to(device)
        if self.args.world_size > 1:
            gathered: Any = self.accelerator.gather(count)
            return gathered.sum()
        return count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        mode = "train" if model.training else "eval"
        inputs = dict(inputs)
        token_weights = inputs.pop("token_weights")[:, 1:]
        token_counts = inputs.pop("token_counts")[:, 1:]
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        logprobs, mask = outputs.log_probs, outputs.label_mask
        if self.args.loss_type == "dft":
            token_weights = token_weights * self._dft_factors(logprobs, inputs["labels"][:, 1:])
        # An evaluation batch has no step: it is normalised by its own counts.
        count = token_counts.sum() if num_items_in_batch is None else num_items_in_batch
        # Without a trained token the sum is zero, and zero over one is the right loss.
        count = torch.where(count > 0, count, 1.0).to(logprobs.dtype)
        loss = weighted_nll(logprobs, mask, token_weights, normaliser=count)
        if num_items_in_batch is not None:
            # Data-parallel wrappers average gradients over ranks; N counted every rank's tokens.
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = (
                self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            )
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        self._record(mode, inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def _dft_factors(self, logprobs: Tensor, labels: Tensor) -> Tensor:
        full: Tensor | None = None
        if self.args.dft_full_end_of_turn:
            end_of_turn: Any = self._tokenizer.eos_token_id
            full = labels.eq(end_of_turn)
        return dft_factors(
            logprobs, floor=self.args.dft_floor, beta=self.args.dft_beta, full_weight=full
        )

    def _record(self, mode: str, inputs: dict[str, Any], outputs: Any) -> None:
        """Log the plain NLL and the accuracy per trained token beside the weighted loss."""
        mask = outputs.label_mask
        local = torch.stack(
            [
                mask.sum().double(),
                -outputs.log_probs.detach().sum().double(),
                outputs.is_top1.sum().double(),
                torch.as_tensor(_num_tokens(inputs), device=mask.device).double(),
            ]
        )
        sums: Any = self.accelerator.reduce(local, reduction="sum")
        num_trained, nll, num_correct, num_tokens = sums.tolist()
        if num_trained:
            self._metrics[mode]["nll"].append(nll / num_trained)
            self._metrics[mode]["mean_token_accuracy"].append(num_correct / num_trained)
        if mode == "train":
            self._total_train_tokens += int(num_tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _num_tokens(inputs: dict[str, Any]) -> Tensor | int:
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum()
    return inputs["position_ids"].numel()


def _with_token_columns(dataset: Dataset, normaliser: Any) -> Dataset:
    columns = set(dataset.column_names)
    labels: list[list[int]] = dataset["labels"][:]
    if "token_weights" in columns:
        # Truncation by the parent cut `input_ids` and `labels` only.
        weights: list[Any] = [
            row[: len(kept)] for row, kept in zip(dataset["token_weights"], labels, strict=True)
        ]
    elif "weight" in columns:
        weights = dataset["weight"][:]
    else:
        weights = [1.0] * len(labels)
    rows = [
        token_columns(label, weight, normaliser=normaliser)
        for label, weight in zip(labels, weights, strict=True)
    ]
    data = {"input_ids": dataset["input_ids"][:], "labels": labels}
    return Dataset.from_dict(data | {name: [row[name] for row in rows] for name in WEIGHT_COLUMNS})


def _require_weights(dataset: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"train_dataset must be a datasets.Dataset, got {type(dataset).__name__}; "
            "streaming data sets are not supported with weights"
        )
    if "token_weights" in dataset.column_names:
        check_weights([w for row in dataset["token_weights"] for w in row])
    elif "weight" in dataset.column_names:
        check_weights(dataset["weight"][:])
    else:
        raise WeightError(
            f"train_dataset has no column 'weight' (it has {', '.join(dataset.column_names)}); "
            "add one, or use trl.SFTTrainer for unweighted training"
        )


def _refuse_unweightable(kwargs: dict[str, Any]) -> None:
    for name in ("compute_loss_func", "data_collator", "compute_metrics"):
        if kwargs.get(name) is not None:
            raise ConfigError(
                f"{name} cannot be combined with WeightedSFTTrainer, which has its own"
            )


def _refuse_parallelism(accelerator: Any) -> None:
    parallelism = accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ConfigError("weights are not sharded by context or sequence parallelism; turn it off")


def _use_compact_head(model: Any) -> None:
    """Project only the trained positions: off CUDA, TRL's fused head projects every position."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    stock_forward = base.forward

    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any
    ) -> Any:
        if not fused_lm_head or kwargs.get("output_router_logits"):
            return stock_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        mask = labels != -100
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        result = target_logprobs(self, hidden[mask], labels[mask], chunk_size=_HEAD_CHUNK_SIZE)
        zeros = torch.zeros(mask.shape, dtype=result.logprobs.dtype, device=mask.device)
        return types.SimpleNamespace(
            log_probs=zeros.masked_scatter(mask, result.logprobs),
            label_mask=mask,
            is_top1=result.top_tokens == labels[mask],
        )

    base.forward = types.MethodType(forward, base)
