"""The vocabulary projection of a model in training, over the trained positions only."""

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.generic import ModelOutput

from atlantis.models.encoder_decoder import decoder_hidden
from atlantis.models.head import head_logits, target_logprobs
from atlantis.numerics.losses import top_entropy

_HEAD_CHUNK_SIZE = 1024


@dataclass
class CompactOutput(ModelOutput):
    """The fields of `trl.trainer.utils.FusedCausalLMOutput` that are read here, and one more.

    A `ModelOutput`, so that data-parallel wrappers find the tensors in it.
    """

    log_probs: Tensor | None = None
    """Log-probability of each next token, ``[batch, token]``; zero where it is not trained on."""
    label_mask: Tensor | None = None
    """True where the next token is trained on."""
    is_top1: Tensor | None = None
    """Whether a trained token is the likeliest one, ``[trained token]``."""
    top_entropy: Tensor | None = None
    """`numerics.losses.top_entropy` of the predictions, if it was asked for."""


def use_compact_head(model: Any, *, num_entropy_tokens: int = 0) -> None:
    """Give the model a forward pass for ``fused_lm_head=True`` that skips untrained positions.

    Off CUDA, TRL's fused head projects every position, and nowhere does it have the entropy of the
    likeliest tokens.

    Args:
        model: A causal language model, with adapters or without.
        num_entropy_tokens: The likeliest tokens that the output's ``top_entropy`` is over, at the
            price of a second projection; 0 for none.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    stock_forward = base.forward

    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any
    ) -> Any:
        if not fused_lm_head or kwargs.get("output_router_logits"):
            return stock_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        return _compact_output(self, hidden, labels, num_entropy_tokens)

    base.forward = types.MethodType(forward, base)


def use_compact_decoder_head(model: Any, *, num_entropy_tokens: int = 0) -> None:
    """The same for an encoder-decoder, which has no such forward pass of TRL's.

    With ``fused_lm_head=True`` it takes ``decoder_input_ids`` and ``labels`` that stand one beside
    the other, as a causal model's ``input_ids`` and ``labels`` do: the first label is not
    predicted, and the decoder does not read the last token.

    Args:
        model: An encoder-decoder language model, with adapters or without.
        num_entropy_tokens: As in `use_compact_head`.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    stock_forward = base.forward

    @functools.wraps(type(base).forward)  # `generate` asks for the names of its arguments
    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return stock_forward(*args, **kwargs)
        hidden = decoder_hidden(
            self,
            kwargs["input_ids"],
            kwargs["attention_mask"],
            kwargs["decoder_input_ids"][:, :-1],
            kwargs["decoder_attention_mask"][:, :-1],
        )
        return _compact_output(self, hidden, kwargs["labels"][:, 1:], num_entropy_tokens)

    base.forward = types.MethodType(forward, base)


def _compact_output(
    model: PreTrainedModel, hidden: Tensor, labels: Tensor, num_entropy_tokens: int
) -> CompactOutput:
    """Log-probabilities of ``labels``, ``[batch, token]``, from the hidden states before them."""
    mask = labels != -100
    hidden, targets = hidden[mask], labels[mask]
    size = _chunk_size(hidden)
    result = target_logprobs(model, hidden, targets, chunk_size=size)
    entropy = None
    if num_entropy_tokens:
        entropy = _spread(_entropies(model, hidden.split(size), num_entropy_tokens), mask)
    return CompactOutput(
        log_probs=_spread(result.logprobs, mask),
        label_mask=mask,
        is_top1=result.top_tokens == targets,
        top_entropy=entropy,
    )


def _chunk_size(hidden: Tensor) -> int:
    """Positions projected at once.

    DeepSpeed gathers the weights of the projection at each call, so that all processes have to call
    it as often, however many tokens are theirs.
    """
    return max(1, len(hidden)) if is_deepspeed_zero3_enabled() else _HEAD_CHUNK_SIZE


@torch.no_grad()
def _entropies(model: PreTrainedModel, chunks: Sequence[Tensor], k: int) -> Tensor:
    return torch.cat([top_entropy(head_logits(model, chunk), k=k) for chunk in chunks])


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the positions where ``mask`` is True; zero elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(
        mask, values
    )
