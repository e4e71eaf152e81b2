"""Less work, and faster products, on the way to the last hidden states. For scoring only.

All parts leave the model as it is. `OneDnnProducts` computes what torch computes, in another
library. `SharedPrefix` reads once what all prompts begin with. `end_to_end_hidden` reads rows
without padding. The latter two are compared with the plain forward pass before they are used.
"""

import copy
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from atlantis.data.tokenization import TokenizedExample, common_prefix_length

FEWEST_SHARED_TOKENS = 32
"""A shorter prefix is not worth its copies."""

_PLAIN = (Tensor, nn.Parameter)
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
_UNLIKE = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)
"""What a forward pass raises that has no cache, or one of another kind."""


class OneDnnProducts(TorchFunctionMode):
    """Within this block, float32 linear layers on an x86 processor go through oneDNN.

    torch takes MKL, which uses half the vector width on processors of other makers. Weights stay in
    their place and layout, no copy is made. Other types, devices, and passes that record gradients
    are left to torch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear and _HAS_ONEDNN and not torch.is_grad_enabled():
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # torch's names
    operands = (input, weight) if bias is None else (input, weight, bias)
    if weight.dim() == 2 and input.numel() and all(map(_is_plain_float32, operands)):
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return functional.linear(input, weight, bias)


def _is_plain_float32(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


class SharedPrefix:
    """The keys and values of the tokens that all rows begin with, computed once."""

    def __init__(self, model: PreTrainedModel, ids: Sequence[int]) -> None:
        self._model: Any = model
        self.num_tokens = len(ids)
        first = torch.tensor([list(ids)], device=model.device)
        self._cache: Any = self._model.base_model(input_ids=first, use_cache=True).past_key_values

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states of right-padded rows that lack the prefix, ``[row, token, hidden]``.

        Args:
            input_ids: What follows the prefix, ``[row, token]``.
            attention_mask: 1 where a row has a token, ``[row, token]``.
        """
        cache = copy.deepcopy(self._cache)  # the model appends to it
        cache.batch_repeat_interleave(len(input_ids))
        ones = attention_mask.new_ones(len(input_ids), self.num_tokens)
        mask = torch.cat([ones, attention_mask], 1)
        output = self._model.base_model(
            input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state


def num_shared_tokens(rows: Sequence[TokenizedExample]) -> int:
    """How many leading tokens all rows share; 0 where it is not worth it to share them.

    Each row keeps the token that predicts its first completion token.
    """
    if len(rows) < 2:
        return 0
    ids = [row.input_ids for row in rows]
    shared = common_prefix_length(min(ids), max(ids))
    shared = min(shared, min(row.num_prompt_tokens for row in rows) - 1)
    return shared if shared >= FEWEST_SHARED_TOKENS else 0


@torch.inference_mode()
def share_prefix(model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> SharedPrefix | None:
    """What all rows begin with, read by the model; None where that is short or does not work.

    It is used only if the shortest and the longest row have the same hidden states with it and
    without it, up to rounding.

    Args:
        model: A causal language model.
        rows: All rows of a window, so that the result does not depend on how far a run has come.
    """
    length = num_shared_tokens(rows)
    if length == 0 or model.config.is_encoder_decoder:
        return None
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    try:
        found = SharedPrefix(model, rows[0].input_ids[:length])
        extremes = (by_length[0], by_length[-1])
        worst = max(_error(model, found, row.input_ids, length) for row in extremes)
    except _UNLIKE:
        return None
    return found if worst <= torch.finfo(model.dtype).eps ** 0.5 else None


def end_to_end_hidden(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Last hidden states of rows laid end to end in one, without padding, ``[token, hidden]``.

    Positions begin anew with each row: attention kernels for rows of variable length take them for
    borders, and the other ones get a mask that says so.
    """
    ids = torch.tensor([[token for row in rows for token in row]], device=model.device)
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None].to(model.device)
    output = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    return output.last_hidden_state[0]


@torch.inference_mode()
def reads_end_to_end(model: PreTrainedModel) -> bool:
    """Whether rows laid end to end have the hidden states that they have by themselves.

    Not so where anything but attention mixes tokens, or where positions do not count from zero.
    """
    if model.config.is_encoder_decoder:
        return False
    vocabulary = int(model.config.get_text_config().vocab_size)
    rows = [[(3 + 7 * i) % vocabulary for i in range(length)] for length in (5, 9, 2)]
    try:
        found = end_to_end_hidden(model, rows).split([len(row) for row in rows])
        alone = [_alone(model, row) for row in rows]
        worst = max(
            float((part - expected).abs().max() / expected.abs().max())
            for part, expected in zip(found, alone, strict=True)
        )
    except _UNLIKE:
        return False
    return worst <= torch.finfo(model.dtype).eps ** 0.5


def _alone(model: Any, row: Sequence[int]) -> Tensor:
    ids = torch.tensor([list(row)], device=model.device)
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]


def _error(model: Any, prefix: SharedPrefix, ids: Sequence[int], length: int) -> float:
    """Largest difference of two hidden states, as a share of the largest."""
    row = torch.tensor([list(ids)], device=model.device)
    expected = _alone(model, ids)[None, length:]
    # Twice, and one token more: the copies and the padding are compared too.
    twice = functional.pad(row[:, length:], (0, 1)).expand(2, -1)
    mask = torch.ones_like(twice)
    mask[:, -1] = 0
    found = prefix.hidden(twice, mask)[:, :-1]
    return float((found - expected).abs().max() / expected.abs().max())
