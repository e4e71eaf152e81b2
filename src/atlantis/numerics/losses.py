r"""Training losses as pure functions of per-token log-probabilities.

.. math:: L = \frac{1}{N} \sum_i \sum_t w_{it}\, \ell_{it}
    \qquad \ell_{it} = -g_{it} \log p_\theta(y_{it} \mid x_i, y_{i,<t})

``w`` are the importance weights, constant; ``g`` are token factors that depend on the current
model and are detached. ``N`` is counted over the whole optimizer step, all micro-batches and ranks:
dividing by a micro-batch's own sum of weights makes the weights cancel as the micro-batch shrinks.

The functions named ``*_factors`` give ``g``, without a gradient; those named ``*_losses`` are token
losses that are no such product, with one. A token that the other model did not score carries NaN.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LARGEST_LOGPROB = -1e-6
"""float32 logits of ordinary size do not tell a log-probability that is closer to zero."""


def weighted_loss(
    token_losses: Float[Tensor, "batch token"],
    completion_mask: Bool[Tensor, "batch token"],
    token_weights: Float[Tensor, "batch token"],
    *,
    normaliser: Tensor | float,
) -> Float[Tensor, ""]:
    r"""Weighted sum of the completions' token losses over ``normaliser``.

    Args:
        token_losses: Loss of each next token under the model being trained.
        completion_mask: True where a token belongs to the completion and counts.
        token_weights: Constant weight of each token: ``w_i`` on every token of example ``i``.
        normaliser: ``N`` above. With all weights and factors one and the number of completion
            tokens as ``N`` this is the ordinary SFT loss.

    Raises:
        ValueError: ``token_weights`` carries a gradient.
    """
    if token_weights.requires_grad:
        raise ValueError("token_weights must be constants: compute them under torch.no_grad()")
    # Not `losses * mask`: a masked infinity would turn the loss into NaN.
    return (token_weights * token_losses.masked_fill(~completion_mask, 0.0)).sum() / normaliser


def weighted_nll(
    token_logprobs: Float[Tensor, "batch token"],
    completion_mask: Bool[Tensor, "batch token"],
    token_weights: Float[Tensor, "batch token"],
    *,
    normaliser: Tensor | float,
) -> Float[Tensor, ""]:
    """Weighted negative log-likelihood of the completions: `weighted_loss` with every factor one.

    Raises:
        ValueError: ``token_weights`` carries a gradient.
    """
    return weighted_loss(-token_logprobs, completion_mask, token_weights, normaliser=normaliser)


def dft_factors(
    token_logprobs: Float[Tensor, "batch token"],
    *,
    floor: float = 0.0,
    beta: float = 1.0,
    full_weight: Bool[Tensor, "batch token"] | None = None,
) -> Float[Tensor, "batch token"]:
    r"""Dynamic fine-tuning: token factors :math:`g_t = \text{sg}(\max(p_t, \text{floor})^\beta)`.

    With ``beta = 1`` and no floor the gradient is that of :math:`-\sum_t p_t`, and with any other
    ``beta`` that of :math:`\sum_t (1 - p_t^\beta) / \beta`, the p^beta family.

    Args:
        token_logprobs: Log-probabilities of the target tokens under the model being trained.
        floor: Smallest probability used; keeps hopeless tokens from never being learnt.
        beta: Power of the probability; 0 gives plain SFT.
        full_weight: True where a token keeps factor one, such as the end-of-turn token, whose
            probability starts near zero in a base model so that plain DFT never learns to stop.

    References:
        Wu et al., On the Generalization of SFT, arXiv 2508.05629; the family: Beyond
        Log-Likelihood, arXiv 2510.00526.
    """
    with torch.no_grad():
        factors = token_logprobs.exp().clamp(min=floor).pow(beta)
        if full_weight is not None:
            factors = factors.masked_fill(full_weight, 1.0)
    return factors


def chord_phi_factors(
    token_logprobs: Float[Tensor, "batch token"],
) -> Float[Tensor, "batch token"]:
    r"""CHORD's token factors :math:`\phi_t = \text{sg}(p_t (1 - p_t))`, at most 1/4.

    Neither what the model knows nor what it finds absurd is learnt.

    References:
        arXiv 2508.11408, the weighting of its supervised part.
    """
    with torch.no_grad():
        return token_logprobs.exp() * -token_logprobs.expm1()


def top_entropy(logits: Float[Tensor, "*position vocabulary"], *, k: int) -> Tensor:
    """Entropy in nats of the distribution over the ``k`` likeliest tokens, made to sum to one.

    Returns:
        One value per position, between 0 and ``ln k``, without a gradient.
    """
    with torch.no_grad():
        logprobs = logits.topk(k, dim=-1).values.log_softmax(-1)
        return -(logprobs.exp() * logprobs).sum(-1)


def entropy_factors(
    entropy: Float[Tensor, "batch token"], *, k: int, power: float = 1.0
) -> Float[Tensor, "batch token"]:
    r"""Entropy-adaptive fine-tuning: :math:`g_t = \text{sg}(H_t / \ln k)^a`.

    A token that contradicts a confident prediction gets little weight.

    Args:
        entropy: `top_entropy` of the predictions of the model being trained.
        k: Number of tokens that it is over; LLaMA-Factory divides by 3.0, near ln 20.
        power: Exponent ``a``; 0 gives plain SFT.

    References:
        Diao et al., Entropy-Adaptive Fine-Tuning, arXiv 2601.02151.
    """
    return (entropy.detach() / math.log(k)).pow(power)


def iw_sequence_factors(
    token_logprobs: Float[Tensor, "batch token"],
    reference_logprobs: Float[Tensor, "batch token"],
    completion_mask: Bool[Tensor, "batch token"],
    example_index: Int[Tensor, "batch token"],
    *,
    temperature: float = 1.0,
    low: float = 0.0,
    high: float = 16.0,
) -> Float[Tensor, "batch token"]:
    r"""iw-SFT, one factor per example.

    .. math:: g_i = \text{sg}\big(\text{clip}(\exp(\tau \cdot \text{mean}_t
        (\log p_\theta - \log p_\text{ref})), \text{low}, \text{high})\big)

    The mean is over the completion tokens that the reference scored; without one the factor is that
    of a ratio of one.

    Args:
        token_logprobs: Log-probabilities of the target tokens under the model being trained.
        reference_logprobs: The same under the reference; NaN where it did not score the token.
        completion_mask: True where a token belongs to the completion and counts.
        example_index: Number of the example that each token belongs to, from 0: rows may be packed.
        temperature: ``tau``, a factor of the mean log-ratio.
        low: Smallest factor.
        high: Largest factor.

    References:
        arXiv 2507.12856; length-normalised and detached as in its code, emmyqin/iw_sft.
    """
    with torch.no_grad():
        known = completion_mask & ~reference_logprobs.isnan()
        log_ratios = (token_logprobs - reference_logprobs).double().masked_fill(~known, 0.0)
        index = example_index.flatten()
        sums = log_ratios.new_zeros(int(index.max()) + 1)
        counts = sums.index_add(0, index, known.flatten().double())
        sums = sums.index_add(0, index, log_ratios.flatten())
        factors = (temperature * sums / counts.clamp(min=1.0)).exp().clamp(low, high)
        return factors[example_index].to(token_logprobs.dtype)


def iw_token_factors(
    token_logprobs: Float[Tensor, "batch token"],
    reference_logprobs: Float[Tensor, "batch token"],
    *,
    low: float = 0.2,
    high: float = 1.8,
) -> Float[Tensor, "batch token"]:
    r"""iw-SFT, one factor per token: sg(clip(p_theta / p_ref, low, high)).

    A token that the reference did not score keeps factor one.

    References:
        emmyqin/iw_sft with ``sum_over_time=False``; arXiv 2507.12856.
    """
    with torch.no_grad():
        factors = (token_logprobs - reference_logprobs).exp().clamp(low, high)
        return factors.masked_fill(reference_logprobs.isnan(), 1.0)


def psft_losses(
    token_logprobs: Float[Tensor, "batch token"],
    old_logprobs: Float[Tensor, "batch token"],
    *,
    clip: float = 0.28,
) -> Float[Tensor, "batch token"]:
    r"""Proximal SFT: :math:`\ell_t = -\min(r_t, \text{clip}(r_t, 1 - \epsilon, 1 + \epsilon_h))`.

    The ratio :math:`r_t = p_\theta / p_\text{old}` carries the gradient: it is the objective itself
    and no factor. With an advantage of one the lower bound never acts, so there is none here. A
    token that has become ``1 + clip`` times as likely as when the window began gives no gradient.

    Args:
        token_logprobs: Log-probabilities of the target tokens under the model being trained.
        old_logprobs: The same under the policy at the start of the window.
        clip: The upper bound's distance from one.

    References:
        arXiv 2508.17784.
    """
    # The bound in log space: the gradient of an overflowing exp would be 0 * inf.
    return -(token_logprobs - old_logprobs).clamp(max=math.log1p(clip)).exp()


def two_outcome_kl_losses(
    token_logprobs: Float[Tensor, "batch token"],
    base_logprobs: Float[Tensor, "batch token"],
) -> Float[Tensor, "batch token"]:
    r"""KL(base || theta) of "this token or another", from the two models' log-probabilities.

    .. math:: q_t \ln\frac{q_t}{p_t} + (1 - q_t) \ln\frac{1 - q_t}{1 - p_t}
        \qquad q = p_\text{base},\; p = p_\theta

    The divergence over the whole vocabulary needs the base model's whole distribution. Merging all
    other tokens into one outcome makes it smaller, never larger (data processing inequality), and
    keeps its sign: zero where both agree on the token, and against the target's logit the slope is
    ``p - q``. The usual sampled estimators (k1, k3) do not estimate it here: they need tokens drawn
    from one of the two models, and these are the expert's. Gradients flow through theta.

    Log-probabilities above ``-1e-6`` count as ``-1e-6`` and give no gradient: float32 does not tell
    them apart, and ``1 - p`` would be zero. A token that the base did not score has loss zero.
    """
    known = ~base_logprobs.isnan()
    base = base_logprobs.masked_fill(~known, -1.0).clamp(max=_LARGEST_LOGPROB)
    theta = token_logprobs.clamp(max=_LARGEST_LOGPROB)
    other_base, other_theta = (-base.expm1()).log(), (-theta.expm1()).log()
    kl = base.exp() * (base - theta) - base.expm1() * (other_base - other_theta)
    return kl.masked_fill(~known, 0.0)
