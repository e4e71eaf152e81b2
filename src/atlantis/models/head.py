"""Log-probabilities of completion tokens from hidden states: only those positions, in chunks.

The vocabulary projection dominates memory and, for short completions, time. Projecting only the
positions whose next token counts, a chunk at a time, keeps both independent of the prompt. The
statistics are float32 whatever the model's dtype: a bfloat16 log-softmax is off by up to 0.1 nats
in the tail.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel


class LogitTransform(NamedTuple):
    """What an architecture does to its logits after the projection."""

    scale: float = 1.0
    softcap: float | None = None
    """Gemma 2: ``cap * tanh(logits / cap)``."""


class HeadOutput(NamedTuple):
    """Per position: the target's log-probability, and the most likely token."""

    logprobs: Tensor
    top_tokens: Tensor


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """Read scaling and soft-capping from a model's configuration."""
    fields = config.get_text_config().to_dict()
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    scale = next((fields[name] for name in names if fields.get(name) is not None), 1.0)
    divisor = fields.get("logits_scaling")  # Granite, MiniCPM3 divide; HyperCLOVA X multiplies
    if divisor:
        scale = divisor if fields["model_type"] == "hyperclovax" else 1.0 / divisor
    return LogitTransform(scale=float(scale), softcap=fields.get("final_logit_softcapping"))


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """float32 logits over the vocabulary for hidden states of shape ``[position, hidden]``."""
    transform = logit_transform(model.config)
    head: Any = model.get_output_embeddings()
    logits = head(hidden).float() * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits


def target_logprobs(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, *, chunk_size: int
) -> HeadOutput:
    """float32 log-probabilities of ``targets``, with at most a chunk of logits alive.

    Args:
        model: A causal language model, for its head and its logit transforms.
        hidden: Hidden states that predict the targets, ``[position, hidden]``.
        targets: Token ids, ``[position]``.
        chunk_size: Positions projected at once. While gradients are recorded each chunk's logits
            are recomputed in the backward pass instead of being kept.
    """

    def one_chunk(hidden_chunk: Tensor, target_chunk: Tensor) -> tuple[Tensor, Tensor]:
        logits = head_logits(model, hidden_chunk)
        target_logits = logits.gather(-1, target_chunk[:, None]).squeeze(-1)
        return target_logits - logits.logsumexp(-1), logits.detach().argmax(-1)

    logprobs: list[Tensor] = []
    top_tokens: list[Tensor] = []
    chunks = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    for hidden_chunk, target_chunk in chunks:
        if torch.is_grad_enabled() and targets.numel() > chunk_size:
            result = checkpoint(one_chunk, hidden_chunk, target_chunk, use_reentrant=False)
        else:
            result = one_chunk(hidden_chunk, target_chunk)
        logprobs.append(result[0])
        top_tokens.append(result[1])
    return HeadOutput(torch.cat(logprobs), torch.cat(top_tokens))
