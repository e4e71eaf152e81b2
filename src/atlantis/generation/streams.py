"""Random numbers of samples: a stream for each attempt at each example, whatever is beside it.

A token is chosen by the inverse of the cumulative distribution at one uniform number, so that a
sample depends on its own stream and its own logits only: not on the batch, nor on other examples,
nor on how far an earlier run came.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from atlantis.errors import ModelError
from atlantis.generation.sampling import SamplingConfig


def stream_seed(seed: int, example_id: str, attempt: int) -> int:
    """128 bits for one sample."""
    name = f"{seed}\n{attempt}\n{example_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:16], "little")


def short_seed(seed: int, example_id: str, attempt: int) -> int:
    """31 bits of it, which every server takes."""
    return stream_seed(seed, example_id, attempt) & 0x7FFF_FFFF


class TokenSampler(LogitsProcessor):
    """Leaves one token of each row, drawn at its temperature from its nucleus.

    ``generate`` is to take the most likely token, and there is no other.

    Args:
        seeds: One for each row (`stream_seed`).
        config: Temperature and ``top_p``.
        num_given: Ids that stand before the first new one.
        device: Of the logits.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        config: SamplingConfig,
        *,
        num_given: int,
        device: torch.device,
    ) -> None:
        draws = [
            np.random.Generator(np.random.Philox(key=seed)).random(config.max_new_tokens)
            for seed in seeds
        ]
        self._uniform = torch.from_numpy(np.stack(draws)).to(device)
        self._config = config
        self._num_given = num_given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - transformers names narrower types
        """Logits ``[row, token]`` to zero for the drawn token and minus infinity elsewhere."""
        step = input_ids.shape[1] - self._num_given
        chosen = draw(
            scores,
            self._uniform[:, step].to(scores.device),
            temperature=self._config.temperature,
            top_p=self._config.top_p,
        )
        alone = torch.full_like(scores, -torch.inf)
        return alone.scatter_(1, chosen[:, None], 0.0)


def draw(logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """One token for each row: the first whose cumulative probability exceeds the uniform number.

    Args:
        logits: ``[row, token]``.
        uniform: In [0, 1), ``[row]``.
        temperature: Divides the logits.
        top_p: The nucleus is the smallest set of the most likely tokens that has this probability.

    Raises:
        ModelError: The probabilities are not finite.
    """
    # Shifted first: a small temperature would carry large logits beyond what a number can hold.
    shifted = logits.double() - logits.double().amax(-1, keepdim=True)
    probabilities = (shifted / temperature).softmax(-1)
    if not probabilities.isfinite().all():
        raise ModelError("the model gives logits that are not finite; load it in another dtype")
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total, or the last token would be drawn even where it has no probability.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The probabilities with zeros outside the nucleus."""
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities).scatter_(1, tokens, ordered.where(before < top_p, 0.0))
