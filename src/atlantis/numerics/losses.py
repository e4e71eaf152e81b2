r"""Training losses as pure functions of per-token log-probabilities.

.. math:: L = -\frac{1}{N} \sum_i \sum_t w_{it}\, g_{it}\, \log p_\theta(y_{it} \mid x_i, y_{i,<t})

``w`` are the importance weights, constant; ``g`` are token factors that depend on the current
model and are detached. ``N`` is counted over the whole optimizer step, all micro-batches and ranks:
dividing by a micro-batch's own sum of weights makes the weights cancel as the micro-batch shrinks.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def weighted_nll(
    token_logprobs: Float[Tensor, "batch token"],
    completion_mask: Bool[Tensor, "batch token"],
    token_weights: Float[Tensor, "batch token"],
    *,
    normaliser: Tensor | float,
) -> Float[Tensor, ""]:
    r"""Weighted negative log-likelihood of the completions over ``normaliser``.

    Args:
        token_logprobs: Log-probability of each next token under the model being trained.
        completion_mask: True where a token belongs to the completion and counts.
        token_weights: Constant weight of each token: ``w_i`` on every token of example ``i``.
        normaliser: ``N`` above. With all weights and factors one and the number of completion
            tokens as ``N`` this is the ordinary SFT loss.

    Raises:
        ValueError: ``token_weights`` carries a gradient.
    """
    if token_weights.requires_grad:
        raise ValueError("token_weights must be constants: compute them under torch.no_grad()")
    # Not `logprobs * mask`: a masked -inf would turn the loss into NaN.
    nll = -token_logprobs.masked_fill(~completion_mask, 0.0)
    return (token_weights * nll).sum() / normaliser


def dft_factors(
    token_logprobs: Float[Tensor, "batch token"],
    *,
    floor: float = 0.0,
    beta: float = 1.0,
    full_weight: Bool[Tensor, "batch token"] | None = None,
) -> Float[Tensor, "batch token"]:
    r"""Dynamic fine-tuning: token factors :math:`g_t = \text{sg}(\max(p_t, \text{floor})^\beta)`.

    With ``beta = 1`` and no floor the gradient is that of :math:`-\sum_t p_t`.

    Args:
        token_logprobs: Log-probabilities of the target tokens under the model being trained.
        floor: Smallest probability used; keeps hopeless tokens from never being learnt.
        beta: Power of the probability; 0 gives plain SFT.
        full_weight: True where a token keeps factor one, such as the end-of-turn token, whose
            probability starts near zero in a base model so that plain DFT never learns to stop.

    References:
        Wu et al., On the Generalization of SFT, arXiv 2508.05629.
    """
    with torch.no_grad():
        factors = token_logprobs.exp().clamp(min=floor).pow(beta)
        if full_weight is not None:
            factors = factors.masked_fill(full_weight, 1.0)
    return factors
