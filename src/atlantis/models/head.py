"""Log-probabilities of completion tokens from hidden states: only those positions, in blocks.

The vocabulary projection dominates memory and, for short completions, time. Projecting only the
positions whose next token counts keeps both independent of the prompt; a block of the vocabulary at
a time, with a running maximum and sum, keeps memory independent of the vocabulary. Logits and
statistics are float32 whatever the model's dtype: a bfloat16 logit of 20 is off by up to 0.06, a
bfloat16 log-softmax by up to 0.1 nats in the tail.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from atlantis.errors import ModelError
from atlantis.models.encoder_decoder import decoder_hidden

_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_HALF = (torch.bfloat16, torch.float16)
_UNLIKE = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)
"""What a forward pass raises that does not take our arguments or has no such parts."""


class _Block(NamedTuple):
    """How many logits are alive at once while scoring."""

    positions: int
    tokens: int


_CPU_BLOCK = _Block(512, 8192)
"""16 MiB stay near the processor's caches: faster than the whole vocabulary for fewer positions."""
_GPU_BLOCK = _Block(8192, 16384)


class LogitTransform(NamedTuple):
    """What an architecture does to its logits after the projection."""

    scale: float = 1.0
    softcap: float | None = None
    """Gemma 2: ``cap * tanh(logits / cap)``."""


class HeadOutput(NamedTuple):
    """Per position: the target's log-probability, and the most likely token."""

    logprobs: Tensor
    top_tokens: Tensor


class ComposedHead(ABC):
    """The head of a model that is made of several: it transforms its logits by itself."""

    out_features: int
    """Size of the vocabulary."""
    is_whole: bool
    """Whether it can project a part of the vocabulary."""

    @abstractmethod
    def logits(self, hidden: Tensor, tokens: slice) -> Tensor:
        """float32 logits of ``tokens``, ``[position, token]``."""
        ...


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """Read scaling and soft-capping from a model's configuration."""
    fields: Any = config.get_text_config()
    softcap = _first(fields, _SOFTCAPS)
    return LogitTransform(
        scale=_scale(fields) * _tied_scale(config),
        softcap=None if softcap is None else float(softcap),
    )


def head_logits(
    model: PreTrainedModel,
    hidden: Tensor,
    tokens: slice = slice(None),  # immutable
) -> Tensor:
    """float32 logits of ``tokens`` for hidden states of shape ``[position, hidden]``.

    Args:
        model: A language model.
        hidden: What its head takes.
        tokens: Part of the vocabulary; less than the whole only of a head that `is_whole`.
    """
    head: Any = model.get_output_embeddings()
    if isinstance(head, ComposedHead):
        return head.logits(hidden, tokens)
    transform = logit_transform(model.config)
    logits = _project(head, hidden, tokens)
    if transform.scale != 1.0:
        logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    bias: Tensor | None = getattr(model, "final_logits_bias", None)  # BART and its descendants
    return logits if bias is None else logits + bias[..., tokens].to(logits)


def target_logprobs(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, *, chunk_size: int
) -> HeadOutput:
    """float32 log-probabilities of ``targets``, with at most a chunk of logits alive.

    Args:
        model: A language model, for its head and its logit transforms.
        hidden: Hidden states that predict the targets, ``[position, hidden]``.
        targets: Token ids, ``[position]``.
        chunk_size: Positions projected at once. While gradients are recorded each chunk's logits
            are recomputed in the backward pass instead of being kept.
    """

    def one_chunk(hidden_chunk: Tensor, target_chunk: Tensor) -> tuple[Tensor, Tensor]:
        logits = head_logits(model, hidden_chunk)
        target_logits = logits.gather(-1, target_chunk.to(logits.device)[:, None]).squeeze(-1)
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


def completion_logprobs(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """float32 log-probabilities of ``targets``, in as little memory whatever the vocabulary.

    As `target_logprobs`, for scoring: no gradients, and logits are overwritten.

    Args:
        model: A language model, for its head and its logit transforms.
        hidden: Hidden states that predict the targets, ``[position, hidden]``.
        targets: Token ids, ``[position]``.
    """
    block = _CPU_BLOCK if hidden.device.type == "cpu" else _GPU_BLOCK
    head: Any = model.get_output_embeddings()
    if is_whole(head):
        num_tokens = int(head.out_features)
    else:  # gives all logits or none
        num_tokens = int(model.config.get_text_config().vocab_size)
        block = _Block(max(1, block.positions * block.tokens // num_tokens), num_tokens)
    found: list[Tensor] = []
    parts = zip(hidden.split(block.positions), targets.split(block.positions), strict=True)
    for part, chosen in parts:
        blocks = [slice(i, i + block.tokens) for i in range(0, num_tokens, block.tokens)]
        found.append(_streamed_logprobs(model, part, chosen, blocks))
    return torch.cat(found)


def _streamed_logprobs(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, blocks: Sequence[slice]
) -> Tensor:
    """``log_softmax(logits)[target]``, one block of the vocabulary at a time, ``[position]``."""
    top = hidden.new_full((len(hidden), 1), torch.finfo(torch.float32).min, dtype=torch.float32)
    total, target = torch.zeros_like(top), torch.zeros_like(top)
    for block in blocks:
        logits = head_logits(model, hidden, block)
        top, total, target = (part.to(logits.device) for part in (top, total, target))
        place = targets.to(logits.device)[:, None] - block.start
        is_here = (place >= 0) & (place < logits.shape[1])
        here = logits.gather(-1, place.clamp(0, logits.shape[1] - 1))
        target = torch.where(is_here, here, target)
        highest = torch.maximum(top, logits.amax(-1, keepdim=True))
        block_total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
        total = total * (top - highest).exp_() + block_total
        top = highest
    return (target - top - total.log()).squeeze(-1)


@torch.inference_mode()
def check_head(model: PreTrainedModel) -> None:
    """Compare `head_logits` on one short row with what the model's own forward pass gives.

    An architecture may do to its logits what no name in its configuration tells; its numbers would
    be wrong and nothing would say so. The own head is made to project in float32 too, so that what
    remains is float32 rounding, and for T5 the rounding of its scaled hidden states.

    Raises:
        ModelError: They differ, or the model's parts are not those of a plain language model.
    """
    refusal = (
        f"{model.name_or_path}: this architecture ({model.config.model_type}) cannot be scored: "
    )
    try:
        own, found = _own_logits(model), head_logits(model, _last_hidden(model))
    except _UNLIKE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{refusal}{reason}") from None
    if own.shape != found.shape:
        raise ModelError(f"{refusal}its logits are not those of its output embeddings")
    if not own.isfinite().all():  # a broken model; its rows get the status nonfinite
        return
    error = float((own.log_softmax(-1) - found.log_softmax(-1)).abs().max())
    if not error <= 1e-4 + torch.finfo(model.dtype).eps * float(own.std()):
        raise ModelError(
            f"{refusal}what it does to its logits is unknown here, log-probabilities differ by "
            f"{error:.2g} nats"
        )


def _project(head: Any, hidden: Tensor, tokens: slice = slice(None)) -> Tensor:
    """float32 products with the output embeddings of ``tokens``.

    While gradients are recorded the module runs by itself, for those who shard its weights.
    """
    if torch.is_grad_enabled() or not is_whole(head):
        return head(hidden).float()
    weight = head.weight[tokens]
    bias = None if head.bias is None else head.bias[tokens]
    hidden = hidden.to(weight.device, weight.dtype)
    if weight.dtype not in _HALF:
        return functional.linear(hidden, weight, bias).float()
    bias = None if bias is None else bias.float()
    if not hidden.is_cuda:
        return functional.linear(hidden.float(), weight.float(), bias)
    logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return logits if bias is None else logits + bias


def is_whole(head: Any) -> bool:
    """Whether it is a plain layer, neither sharded nor offloaded, quantized or with an adapter."""
    if isinstance(head, ComposedHead):
        return head.is_whole
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return False
    return head.weight.shape == (head.out_features, head.in_features) and not _is_meta(head)


def _is_meta(head: nn.Linear) -> bool:
    return head.weight.device.type == "meta"


def _scale(fields: Any) -> float:
    if fields.model_type == "mpt":  # has a logit_scale that transformers does not apply
        return 1.0
    if fields.model_type == "hyperclovax":  # multiplies by what Granite and MiniCPM3 divide by
        return float(fields.logits_scaling)
    scale, divisor = _first(fields, _SCALES), _first(fields, _DIVISORS)
    return (1.0 if scale is None else float(scale)) / (divisor or 1.0)


def _tied_scale(config: Any) -> float:
    """T5 with the head of its first version scales hidden states; mT5 and T5 1.1 do not."""
    scaled = {
        "t5": "scale_decoder_outputs",
        "longt5": "scale_decoder_outputs",
        "umt5": "tie_word_embeddings",
        "switch_transformers": "tie_word_embeddings",
    }
    name = scaled.get(config.model_type)
    return config.d_model**-0.5 if name is not None and getattr(config, name) else 1.0


def _first(fields: Any, names: tuple[str, ...]) -> Any:
    values = (getattr(fields, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _row(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = (torch.arange(3, 11) % vocabulary)[None].to(model.device)
    return ids, torch.ones_like(ids)


def _own_logits(model: PreTrainedModel) -> Tensor:
    """Logits of the model's own forward pass, ``[position, vocabulary]``."""
    head: Any = model.get_output_embeddings()

    def widen(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not is_whole(module) or module.weight.dtype not in _HALF:
            return output.float()
        return _project(module, inputs[0].flatten(0, -2)).unflatten(0, output.shape[:-1])

    ids, mask = _row(model)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if model.config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": mask}
    handle = head.register_forward_hook(widen)
    try:
        return model(**inputs).logits[0].float()
    finally:
        handle.remove()


def _last_hidden(model: PreTrainedModel) -> Tensor:
    """What scoring takes for the head's input, ``[position, hidden]``."""
    ids, mask = _row(model)
    if model.config.is_encoder_decoder:
        return decoder_hidden(model, ids, mask, ids.flip(1), mask)[0]
    backbone: Any = model.base_model
    return backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[0]
