"""`WeightedSeq2SeqTrainer`: transformers' `Seq2SeqTrainer` with a weight per example.

Stock T5 and BART average over the tokens of a micro-batch while the Trainer takes their loss for
one that is normalised over the whole step, so that accumulation and ranks multiply the gradients.
Here the loss is our own, normalised as in `WeightedSFTTrainer`, and the model projects the trained
positions only.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from atlantis.errors import ConfigError
from atlantis.models.head import check_head
from atlantis.training.arguments import (
    check_weighted_options,
    chosen_token_loss,
    refuse_options,
    refuse_parallelism,
    require_weights,
)
from atlantis.training.collation import WEIGHT_COLUMNS
from atlantis.training.compact_head import use_compact_decoder_head
from atlantis.training.losses import TokenLoss
from atlantis.training.seq2seq_rows import PAIR_COLUMNS, PairCollator, with_pair_columns
from atlantis.training.weighted_step import WeightedStep

_OWN = ("compute_loss_func", "data_collator", "compute_metrics", "preprocess_logits_for_metrics")


@dataclass
class WeightedSeq2SeqConfig(Seq2SeqTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments`, the normaliser, and the loss of a token."""

    _VALID_DICT_FIELDS = [*Seq2SeqTrainingArguments._VALID_DICT_FIELDS, "token_loss"]  # noqa: RUF012  # not a field

    loss_normaliser: str = field(
        default="token_mean",
        metadata={"help": "Normaliser of a step: token_mean, example_mean or sequence_sum."},
    )
    token_loss: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Loss of a token: its name (sft, sft_kl, dft, asft, iw_sft, iw_sft_token, "
            'chord_phi, eaft, psft) and settings, as {"name": "eaft"}; by default sft.'
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weighted_options(self)
        self.chosen_loss()
        if self.predict_with_generate:
            raise ConfigError(
                "predict_with_generate: the evaluation loss is taken from the given completions; "
                "set it to false, and generate with the trained model"
            )

    def chosen_loss(self) -> TokenLoss:
        """The loss of a token that ``token_loss`` asks for.

        Raises:
            ConfigError: It has an unknown name or setting.
        """
        return chosen_token_loss(self.token_loss)


class WeightedSeq2SeqTrainer(WeightedStep, Seq2SeqTrainer):
    r"""Importance-weighted fine-tuning of an encoder-decoder (T5, BART and their descendants).

    .. math:: L = \frac{1}{N} \sum_i w_i \sum_t g_{it} \cdot (-\log p_\theta(y_{it} \mid \dots))

    The training set has ``input_ids`` (the encoder's), ``labels`` (the decoder's targets with the
    end of sequence, -100 where nothing is learnt) and ``weight`` (one float per example) or
    ``token_weights`` (one per label). The decoder reads its start token and the labels but the
    last; a column ``decoder_input_ids`` as long as the labels says otherwise. An evaluation set
    without weights counts every example once.

    The loss of an evaluation, and the means per token beside it, are over all of its tokens or
    examples: neither the size of the batches nor the number of ranks changes them.

    A loss that looks at another model needs its log-probabilities as a column, as in
    `WeightedSFTTrainer`, but one per label. What is logged is the same, too.

    Args:
        model: An encoder-decoder language model.
        args: Options.
        train_dataset: Rows to train on.
        eval_dataset: Rows to evaluate on, or several such sets by name.
        processing_class: The model's tokenizer.
        peft_config: Adapters to train instead of the model.
        **kwargs: What else `transformers.Seq2SeqTrainer` takes.

    Raises:
        WeightError: The training set has no weights, or unusable ones.
        DataError: A column is missing or unusable.
        ConfigError: An option cannot be combined with weights, or the model is not such a one.
        ModelError: What the model does to its logits is unknown here.
    """

    args: WeightedSeq2SeqConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: WeightedSeq2SeqConfig,
        *,
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any,
        peft_config: LoraConfig | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_options(kwargs, _OWN, trainer="WeightedSeq2SeqTrainer")
        require_weights(train_dataset, stock="transformers.Seq2SeqTrainer")
        _check_model(model)
        if args.n_gpu > 1:
            raise ConfigError(
                f"{args.n_gpu} GPUs in one process are not supported; start one process for each, "
                "with accelerate launch, or set CUDA_VISIBLE_DEVICES"
            )
        self._loss = args.chosen_loss()
        self._tokenizer = processing_class
        self._start_token: int | None = model.config.decoder_start_token_id
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._total_train_tokens = 0
        super().__init__(
            model=_with_adapters(model, peft_config),
            args=args,
            train_dataset=self._prepared(train_dataset, args),
            eval_dataset=self._prepared_sets(eval_dataset, args),
            processing_class=processing_class,
            data_collator=PairCollator(self._pad_token, self._loss.columns),
            **kwargs,
        )
        refuse_parallelism(self.accelerator)
        use_compact_decoder_head(
            self.accelerator.unwrap_model(self.model),
            num_entropy_tokens=self._loss.num_entropy_tokens,
        )

    @property
    def _pad_token(self) -> int:
        pad_token: Any = self._tokenizer.pad_token_id
        return self._tokenizer.eos_token_id if pad_token is None else pad_token

    def _prepared(self, dataset: Any, args: WeightedSeq2SeqConfig) -> Dataset:
        if isinstance(dataset, Dataset) and set(WEIGHT_COLUMNS) <= set(dataset.column_names):
            return dataset  # `evaluate` gets a data set of a mapping a second time
        return with_pair_columns(
            dataset,
            args.loss_normaliser,  # pyright: ignore[reportArgumentType]
            start_token=self._start_token,
            pad_token=self._pad_token,
            columns=self._loss.columns,
        )

    def _prepared_sets(self, dataset: Any, args: WeightedSeq2SeqConfig) -> Any:
        """One data set or several; None and names of sets as they are."""
        if dataset is None or isinstance(dataset, str):
            return dataset
        if isinstance(dataset, dict):
            sets: dict[str, Any] = dataset
            return {name: self._prepared_sets(rows, args) for name, rows in sets.items()}
        return self._prepared(dataset, args)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*PAIR_COLUMNS, *WEIGHT_COLUMNS, *self._loss.columns]

    def _num_tokens(self, inputs: dict[str, Any]) -> Tensor | int:
        decoder_tokens = inputs["decoder_attention_mask"][:, 1:].sum()
        return inputs["attention_mask"].sum() + decoder_tokens

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Loss and means per token of a data set, by default the one given at the start.

        Raises:
            ConfigError: Options of ``generate`` are given, which is not called.
        """
        if gen_kwargs:
            raise ConfigError(f"evaluate does not generate: {min(gen_kwargs)} has no effect")
        prepared = self._prepared_sets(eval_dataset, self.args)
        return super().evaluate(prepared, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means of a step's metrics beside its loss."""
        model: Any = self.model
        if model.training:
            metrics = self._metrics["train"]
            logs |= {name: sum(values) / len(values) for name, values in metrics.items()}
            metrics.clear()
        super().log(logs, start_time)


def _check_model(model: Any) -> None:
    """Refuse what is not an encoder-decoder that is known here."""
    if not model.config.is_encoder_decoder:
        raise ConfigError(
            f"{model.name_or_path or type(model).__name__} is not an encoder-decoder model; use "
            "WeightedSFTTrainer"
        )
    if is_deepspeed_zero3_enabled():
        return  # its weights are not whole
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    was_training = base.training
    check_head(base.eval())
    base.train(was_training)


def _with_adapters(model: Any, peft_config: LoraConfig | None) -> Any:
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ConfigError("the model has adapters already; leave out peft_config")
        model = get_peft_model(model, peft_config)
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(
            "an adapter on lm_head is not supported: it may share its weights with the embeddings; "
            "leave it out of target_modules"
        )
    return model
