"""Per-token log-probabilities and what is summed or averaged from them (float64, nats)."""

import numpy as np
from jaxtyping import Float, Int


def sequence_logprob(token_logprobs: Float[np.ndarray, " token"]) -> float:
    r"""Log-probability of the whole completion, :math:`S = \sum_t \ell_t`, summed in float64.

    An empty completion has log-probability 0 (the empty product).
    """
    return float(np.sum(token_logprobs, dtype=np.float64))


def mean_logprob(
    sequence_logprobs: Float[np.ndarray, " example"], lengths: Int[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    r"""Log-probability per token (or per byte), :math:`S_i / n_i`, in nats.

    Raises:
        ValueError: A length is not positive; a mean over nothing is not a number.
    """
    if (lengths <= 0).any():
        raise ValueError("every length must be at least 1: a completion without tokens has no mean")
    return sequence_logprobs / lengths


def perplexity(mean_logprobs: Float[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
    r"""Perplexity per token, :math:`e^{-S_i / n_i}`."""
    return np.exp(-mean_logprobs)
