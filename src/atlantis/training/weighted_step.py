"""What weighted trainers share: the loss of a batch, the normaliser of a step, and what is logged.

Batches have ``labels`` and columns aligned with them, whose first position is never predicted; the
model has the forward pass of `compact_head`, or TRL's.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from atlantis.errors import ConfigError
from atlantis.numerics.losses import weighted_loss
from atlantis.training.collation import WEIGHT_COLUMNS, plain_weights
from atlantis.training.losses import OLD, TokenBatch, TokenLoss
from atlantis.training.step_metrics import (
    example_index,
    token_metrics,
    token_sums,
    weight_metrics,
    weight_sums,
)


class Predicted(NamedTuple):
    """What one forward pass gives for the next tokens of a batch."""

    outputs: Any
    batch: TokenBatch
    losses: Tensor
    """Loss of each token without its weight, ``[batch, token]``."""
    token_weights: Tensor
    token_counts: Tensor

    def loss(self, normaliser: Tensor | float) -> Tensor:
        """The weighted sum over ``normaliser``."""
        return weighted_loss(
            self.losses, self.batch.mask, self.token_weights, normaliser=normaliser
        )


class WeightedStep(Trainer):
    """Mixed in before a Trainer, whose ``_loss`` and ``_tokenizer`` are there before it trains."""

    # The normaliser covers the whole accumulated batch: the Trainer must not divide again.
    loss_is_scaled_for_ga = True
    args: Any
    aux_loss_enabled: bool = False
    router_aux_loss_coef: float = 0.0
    _loss: TokenLoss
    _tokenizer: Any
    _metrics: dict[str, defaultdict[str, list[float]]]
    _total_train_tokens: int
    _epoch: Any = None
    _windows: Iterator[dict[str, Any]] = iter(())
    _evaluated: list[Tensor]

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and its normaliser.

        Raises:
            ConfigError: The processes would each train a model of their own.
        """
        self._check_that_gradients_are_averaged()
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

    def _check_that_gradients_are_averaged(self) -> None:
        # accelerate does not wrap a model in DDP that it has prepared for an evaluation before.
        if self.accelerator.num_processes == 1 or self.is_fsdp_enabled:
            return
        if self.model_wrapped is self.model and not self.is_distributed_loading_by_transformers:
            raise ConfigError(
                f"{self.accelerator.num_processes} processes would train without averaging "
                "gradients: evaluate was called before train; set eval_on_start instead"
            )

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
        found = self._predict(model, inputs)
        # An evaluation batch has no step: it is normalised by its own counts.
        count = found.token_counts.sum() if num_items_in_batch is None else num_items_in_batch
        # Without a trained token the sum is zero, and zero over one is the right loss.
        count = torch.where(count > 0, count, 1.0).to(found.losses.dtype)
        loss = found.loss(count)
        if num_items_in_batch is not None:
            # Data-parallel wrappers average gradients over ranks; N counted every rank's tokens.
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = (
                self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            )
            loss = loss + self.router_aux_loss_coef * found.outputs.aux_loss / steps
        self._record(mode, inputs, self._token_sums(found))
        return (loss, found.outputs) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The parent's, with a loss that is no mean of the batches' means."""
        self._evaluated = []
        output = super().evaluation_loop(
            dataloader, description, True, ignore_keys, metric_key_prefix
        )
        sums: Any = self.accelerator.reduce(torch.stack(self._evaluated).sum(0), reduction="sum")
        loss, count = sums[:2].tolist()
        found = {"loss": loss / count if count else 0.0} | token_metrics(sums[2:])
        metrics: dict[str, float] = output.metrics or {}
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return output._replace(metrics=metrics)

    @torch.no_grad()
    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **_: Any,
    ) -> tuple[Any, None, None]:
        """Add one batch to the sums of an evaluation."""
        inputs = self._without_repeats(dict(self._prepare_inputs(inputs)))
        with self.compute_loss_context_manager():
            found = self._predict(model, inputs)
            loss = found.loss(1.0).double()
        sums = torch.stack([loss, found.token_counts.double().sum()])
        self._evaluated.append(torch.cat([sums, self._token_sums(found)]))
        return loss, None, None

    def _without_repeats(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch in which rows count for nothing that only fill up the last batch of a rank."""
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader:
            return inputs
        if "position_ids" in inputs:  # laid end to end: which rows these are is not known
            return inputs
        num_rows, num_left = len(inputs["labels"]), state.remainder
        position = self.accelerator.process_index * num_rows
        if 0 < num_left < position + num_rows:
            repeats = slice(max(0, num_left - position), None)
            inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            inputs["labels"][repeats] = -100
            for name in WEIGHT_COLUMNS:
                inputs[name][repeats] = 0.0
        return inputs

    def _predict(self, model: Any, inputs: dict[str, Any]) -> Predicted:
        """The forward pass over one batch, and the losses of its tokens."""
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
        losses = self._loss.token_losses(batch)
        return Predicted(outputs, batch, losses, token_weights, token_counts)

    def _token_sums(self, found: Predicted) -> Tensor:
        weights = self._plain_weights(found.token_weights, found.token_counts)
        return token_sums(found.batch, weights, found.outputs.is_top1.sum())

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
        num_tokens = torch.as_tensor(self._num_tokens(inputs), device=sums.device).double()
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

    def _num_tokens(self, inputs: dict[str, Any]) -> Tensor | int:
        """Tokens that the model reads."""
        if "attention_mask" in inputs:
            return inputs["attention_mask"].sum()
        return inputs["position_ids"].numel()
