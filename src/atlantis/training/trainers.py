"""`WeightedSFTTrainer`: TRL's `SFTTrainer` with a weight per example, exact at every boundary.

What it changes of its parent: the data set keeps a ``weight`` column (stock TRL drops it without a
word), the collator carries it per token, the loss multiplies by it, and the normaliser is counted
over the whole optimizer step, all micro-batches and ranks; and the loss of a token may be another
than its negative log-likelihood.
"""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import SFTTrainer

from atlantis.errors import ConfigError
from atlantis.training.arguments import (
    WeightedSFTConfig,
    refuse_options,
    refuse_parallelism,
    require_weights,
)
from atlantis.training.collation import (
    WEIGHT_COLUMNS,
    WeightedCollator,
    check_logprobs,
    with_token_columns,
)
from atlantis.training.compact_head import use_compact_head
from atlantis.training.weighted_step import WeightedStep

_OWN = ("compute_loss_func", "data_collator", "compute_metrics", "preprocess_logits_for_metrics")


class WeightedSFTTrainer(WeightedStep, SFTTrainer):
    r"""Importance-weighted supervised fine-tuning.

    .. math:: L = \frac{1}{N} \sum_i w_i \sum_t g_{it} \cdot (-\log p_\theta(y_{it} \mid \dots))

    Takes what `trl.SFTTrainer` takes. The training set needs a column ``weight`` (one float per
    example) or, when it is tokenized already, ``token_weights`` (one per token of ``input_ids``).
    An evaluation set without either counts every example once; the loss of an evaluation, and the
    means per token beside it, are over all of its tokens or examples, whatever the batches and (not
    for rows laid end to end) the ranks. With unit weights the loss, the
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

    args: WeightedSFTConfig

    def __init__(
        self, model: str | PreTrainedModel, args: WeightedSFTConfig, **kwargs: Any
    ) -> None:
        refuse_options(kwargs, _OWN, trainer="WeightedSFTTrainer")
        require_weights(kwargs.get("train_dataset"), stock="trl.SFTTrainer")
        self._loss = args.chosen_loss()
        super().__init__(model, args, **kwargs)
        refuse_parallelism(self.accelerator)
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
