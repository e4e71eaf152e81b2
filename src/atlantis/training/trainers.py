"""`WeightedSFTTrainer`: TRL's `SFTTrainer` with a weight per example, exact at every boundary.

What it changes of its parent: the data set keeps a ``weight`` column (stock TRL drops it without a
word), the collator carries it per token, the loss multiplies by it, and the normaliser is counted
over the whole optimizer step, all micro-batches and ranks; and the loss of a token may be another
than its negative log-likelihood.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import SFTTrainer

from atlantis.errors import ConfigError, WeightError
from atlantis.numerics.losses import weighted_loss
from atlantis.training.arguments import WeightedSFTConfig
from atlantis.training.collation import (
    WEIGHT_COLUMNS,
    WeightedCollator,
    check_logprobs,
    check_weights,
    plain_weights,
    with_token_columns,
)
from atlantis.training.compact_head import use_compact_head
from atlantis.training.losses import OLD, TokenBatch
from atlantis.training.step_metrics import (
    example_index,
    token_metrics,
    token_sums,
    weight_metrics,
    weight_sums,
)


class WeightedSFTTrainer(SFTTrainer):
    r"""Importance-weighted supervised fine-tuning.

    .. math:: L = \frac{1}{N} \sum_i w_i \sum_t g_{it} \cdot (-\log p_\theta(y_{it} \mid \dots))

    Takes what `trl.SFTTrainer` takes. The training set needs a column ``weight`` (one float per
    example) or, when it is tokenized already, ``token_weights`` (one per token of ``input_ids``).
    An evaluation set without either counts every example once. With unit weights the loss, the
    gradients and the steps are those of `trl.SFTTrainer`.

    A loss that looks at another model needs its log-probabilities as a column of both sets, one per
    token of ``input_ids`` and NaN where a token was not scored: ``reference_logprobs`` for iw-SFT,
    ``base_logprobs`` for a divergence from the base. No second model is loaded.

    Logged beside the loss: ``nll`` and ``weighted_nll`` per trained token, ``mean_weight`` and
    ``effective_sample_size`` of a step's examples, ``end_of_turn_probability``.

    Raises:
        WeightError: The training set has no weights, or unusable ones.
        DataError: A column of log-probabilities is missing or unusable.
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
        self._loss = args.chosen_loss()
        self._epoch: Any = None
        self._windows: Iterator[dict[str, Any]] = iter(())
        super().__init__(model, args, **kwargs)
        _refuse_parallelism(self.accelerator)
        # Not passed to the parent, which refuses a collator when batches are flattened.
        stock: Any = self.data_collator
        self.data_collator = WeightedCollator(
            pad_token_id=stock.pad_token_id,
            padding_free=stock.padding_free,
            pad_to_multiple_of=stock.pad_to_multiple_of,
            logprob_columns=self._loss.columns,
        )
        num_entropy_tokens = self._loss.num_entropy_tokens
        if num_entropy_tokens and self.aux_loss_enabled:
            raise ConfigError(f"{self._loss.name} is not defined with a router's auxiliary loss")
        if num_entropy_tokens or self.args.device.type == "cpu":
            base = self.accelerator.unwrap_model(self.model)
            use_compact_head(base, num_entropy_tokens=num_entropy_tokens)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset:
        columns = self._loss.columns
        prepared_before = set(WEIGHT_COLUMNS) <= set(dataset.column_names)
        if not prepared_before:
            check_logprobs(dataset, columns)
        prepared: Any = super()._prepare_dataset(
            dataset, processing_class, args, False, formatting_func, dataset_name
        )
        if prepared_before:
            return prepared  # `evaluate` prepares its data set a second time
        weighted = with_token_columns(prepared, args.loss_normaliser, columns=columns)
        if not packing:
            return weighted
        packed = pack_dataset(weighted, args.max_length, args.packing_strategy)
        return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        wanted = (*WEIGHT_COLUMNS, *self._loss.columns)
        columns.extend(column for column in wanted if column not in columns)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and its normaliser."""
        steps = self._loss.num_window_steps
        if steps and self._epoch is not epoch_iterator:
            size = steps * self.args.gradient_accumulation_steps
            self._epoch, self._windows = epoch_iterator, self._scored(epoch_iterator, size)
        batches, count = super().get_batch_samples(
            self._windows if steps else epoch_iterator, num_batches, device
        )
        if batches:
            self._record_weights(batches, device)
        return batches, count

    def _scored(self, batches: Iterator[dict[str, Any]], size: int) -> Iterator[dict[str, Any]]:
        """Batches with log-probabilities under the policy before the first of ``size`` is used."""
        while window := list(itertools.islice(batches, size)):
            old = [self._policy_logprobs(batch) for batch in window]
            for batch, logprobs in zip(window, old, strict=True):
                yield {**batch, OLD: logprobs}

    @torch.no_grad()
    def _policy_logprobs(self, batch: dict[str, Any]) -> Tensor:
        inputs: dict[str, Any] = dict(self._prepare_inputs(batch))
        for name in (*WEIGHT_COLUMNS, *self._loss.columns):
            del inputs[name]
        model: Any = self.model_wrapped
        model.eval()
        with self.compute_loss_context_manager():
            logprobs = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
        model.train()
        return logprobs

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
        stored = {name: inputs.pop(name)[:, 1:] for name in self._loss.columns}
        old = inputs.pop(OLD, None)
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        if self._loss.num_window_steps:
            stored[OLD] = outputs.log_probs.detach() if old is None else old
        batch = self._token_batch(inputs, outputs, stored)
        # An evaluation batch has no step: it is normalised by its own counts.
        count = token_counts.sum() if num_items_in_batch is None else num_items_in_batch
        # Without a trained token the sum is zero, and zero over one is the right loss.
        count = torch.where(count > 0, count, 1.0).to(batch.logprobs.dtype)
        losses = self._loss.token_losses(batch)
        loss = weighted_loss(losses, batch.mask, token_weights, normaliser=count)
        if num_items_in_batch is not None:
            # Data-parallel wrappers average gradients over ranks; N counted every rank's tokens.
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = (
                self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            )
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        weights = self._plain_weights(token_weights, token_counts)
        self._record(mode, inputs, token_sums(batch, weights, outputs.is_top1.sum()))
        return (loss, outputs) if return_outputs else loss

    def _token_batch(
        self, inputs: dict[str, Any], outputs: Any, stored: dict[str, Tensor]
    ) -> TokenBatch:
        end_of_turn: Any = self._tokenizer.eos_token_id
        return TokenBatch(
            logprobs=outputs.log_probs,
            mask=outputs.label_mask,
            example_index=example_index(inputs)[:, 1:],
            is_end_of_turn=inputs["labels"][:, 1:].eq(end_of_turn),
            stored=stored,
            entropy=outputs.top_entropy if self._loss.num_entropy_tokens else None,
        )

    def _plain_weights(self, token_weights: Tensor, token_counts: Tensor) -> Tensor:
        return plain_weights(token_weights, token_counts, normaliser=self.args.loss_normaliser)

    def _record(self, mode: str, inputs: dict[str, Any], sums: Tensor) -> None:
        """Log means per trained token beside the loss, and count the tokens seen."""
        num_tokens = torch.as_tensor(_num_tokens(inputs), device=sums.device).double()
        reduced: Any = self.accelerator.reduce(torch.cat([sums, num_tokens[None]]), reduction="sum")
        for name, value in token_metrics(reduced[:-1]).items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            self._total_train_tokens += int(reduced[-1])
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def _record_weights(self, batches: list[dict[str, Any]], device: torch.device) -> None:
        """Log how the weights of one optimizer step are spread."""
        sums: list[Tensor] = []
        for batch in batches:
            weights, counts = (batch[name][:, 1:].to(device) for name in WEIGHT_COLUMNS)
            index = example_index(batch)[:, 1:].to(device)
            sums.append(weight_sums(self._plain_weights(weights, counts), counts, index))
        reduced: Any = self.accelerator.reduce(torch.stack(sums).sum(0), reduction="sum")
        for name, value in weight_metrics(reduced).items():
            self._metrics["train"][name].append(value)


def _num_tokens(inputs: dict[str, Any]) -> Tensor | int:
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum()
    return inputs["position_ids"].numel()


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
