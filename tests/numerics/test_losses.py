"""The weighted loss: cross-entropy, finite differences, and what its symmetries demand."""

import math

import pytest
import torch
from torch.nn import functional

from atlantis.numerics.losses import (
    chord_phi_factors,
    dft_factors,
    entropy_factors,
    iw_sequence_factors,
    iw_token_factors,
    psft_losses,
    top_entropy,
    two_outcome_kl_losses,
    weighted_loss,
    weighted_nll,
)

LENGTHS = torch.tensor([5, 2, 4])  # ragged on purpose: equal lengths hide normalisation bugs
WEIGHTS = torch.tensor([0.5, 0.0, 3.0], dtype=torch.float64)


def make_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (3, 5), generator=generator)
    return logits, targets, torch.arange(5) < LENGTHS[:, None]


def logprobs_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)


def per_token(weights: torch.Tensor) -> torch.Tensor:
    return weights[:, None].expand(-1, 5)


def test_unit_weights_are_plain_cross_entropy():
    logits, targets, mask = make_batch()
    expected = functional.cross_entropy(
        logits.flatten(0, 1), targets.masked_fill(~mask, -100).flatten()
    )
    loss = weighted_nll(
        logprobs_of(logits, targets),
        mask,
        torch.ones(3, 5, dtype=torch.float64),
        normaliser=float(mask.sum()),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)  # order of float64 sums


def test_the_loss_is_the_plain_double_loop():
    logits, targets, mask = make_batch()
    logprobs = logprobs_of(logits, targets)
    expected = 0.0
    for row, weight in enumerate(WEIGHTS.tolist()):
        for token in range(int(LENGTHS[row])):
            expected -= weight * logprobs[row, token].item()
    loss = weighted_nll(logprobs, mask, per_token(WEIGHTS), normaliser=11.0)
    assert loss.item() == pytest.approx(expected / 11.0, rel=1e-12)


def test_every_token_may_have_its_own_weight():
    logits, targets, mask = make_batch()
    logprobs = logprobs_of(logits, targets)
    weights = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = sum(
        -(weights[i, t] * logprobs[i, t]).item() for i in range(3) for t in range(LENGTHS[i])
    )
    loss = weighted_nll(logprobs, mask, weights, normaliser=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_weight_two_is_the_example_twice():
    logits, targets, mask = make_batch()
    logprobs, twice = logprobs_of(logits, targets), [0, 0, 1, 2]
    doubled = per_token(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    weighted = weighted_nll(logprobs, mask, doubled, normaliser=1.0)
    ones = torch.ones(4, 5, dtype=torch.float64)
    repeated = weighted_nll(logprobs[twice], mask[twice], ones, normaliser=1.0)
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=0.0)


def test_micro_batches_add_up_to_the_step_under_one_normaliser():
    logits, targets, mask = make_batch()
    logprobs, weights = logprobs_of(logits, targets), per_token(WEIGHTS)
    whole = weighted_nll(logprobs, mask, weights, normaliser=mask.sum().double())
    parts = sum(
        weighted_nll(logprobs[i : i + 1], mask[i : i + 1], weights[i : i + 1], normaliser=11.0)
        for i in range(3)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0.0)


def test_gradient_matches_finite_differences():
    logits, targets, mask = make_batch()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return weighted_nll(logprobs_of(x, targets), mask, per_token(WEIGHTS), normaliser=11.0)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_masked_positions_may_be_impossible_without_harm():
    logits, targets, mask = make_batch()
    logprobs = logprobs_of(logits, targets)
    clean = weighted_nll(logprobs, mask, per_token(WEIGHTS), normaliser=11.0)
    spoiled = logprobs.masked_fill(~mask, -torch.inf).requires_grad_()
    loss = weighted_nll(spoiled, mask, per_token(WEIGHTS), normaliser=11.0)
    loss.backward()
    torch.testing.assert_close(loss, clean, rtol=0.0, atol=0.0)
    assert torch.isfinite(spoiled.grad).all()
    assert (spoiled.grad[~mask] == 0).all()


def test_an_impossible_completion_token_is_not_hidden():
    logprobs = torch.tensor([[-1.0, -torch.inf]])
    mask = torch.tensor([[True, True]])
    assert weighted_nll(logprobs, mask, torch.ones(1, 2), normaliser=2.0).item() == torch.inf


def test_weights_that_carry_a_gradient_are_refused():
    logits, targets, mask = make_batch()
    weights = torch.ones(3, 5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="must be constants"):
        weighted_nll(logprobs_of(logits, targets), mask, weights, normaliser=1.0)


def test_dft_gradient_is_that_of_minus_the_sum_of_probabilities():
    logits, targets, mask = make_batch()
    logits.requires_grad_()
    logprobs = logprobs_of(logits, targets)
    factors = dft_factors(logprobs)
    (found,) = torch.autograd.grad(weighted_nll(logprobs, mask, factors, normaliser=1.0), logits)
    probabilities = logits.softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    (expected,) = torch.autograd.grad(-probabilities[mask].sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)  # float64 roundings


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_dft_factors_are_the_floored_power_of_the_probability(beta, floor):
    logits, targets, _ = make_batch()
    logprobs = logprobs_of(logits, targets)
    found = dft_factors(logprobs, floor=floor, beta=beta)
    for value, logprob in zip(found.flatten(), logprobs.flatten(), strict=True):
        expected = max(2.718281828459045 ** logprob.item(), floor) ** beta
        assert value.item() == pytest.approx(expected, rel=1e-12)
    assert not floor or (found == floor**beta).any()


def test_dft_factors_with_power_zero_are_plain_fine_tuning():
    logprobs = torch.tensor([[0.0, -3.0, -torch.inf]])
    torch.testing.assert_close(dft_factors(logprobs, beta=0.0), torch.ones(1, 3))


def test_dft_factors_are_constants():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    assert not dft_factors(logprobs).requires_grad


def test_the_end_of_turn_keeps_its_full_weight():
    logprobs = torch.tensor([[-1.0, -9.0], [-2.0, -3.0]])
    full = torch.tensor([[False, True], [False, False]])
    found = dft_factors(logprobs, floor=0.01, beta=2.0, full_weight=full)
    assert found[0, 1] == 1.0
    torch.testing.assert_close(
        found[~full], dft_factors(logprobs, floor=0.01, beta=2.0)[~full], rtol=0.0, atol=0.0
    )


def test_shapes_that_broadcast_by_accident_are_refused():
    # [batch] weights against [batch, token] would multiply the wrong axis.
    logits, targets, mask = make_batch()
    with pytest.raises(Exception, match="token_weights"):
        weighted_nll(logprobs_of(logits, targets), mask, WEIGHTS, normaliser=1.0)


def make_reference(scale=2.0):
    """Log-probabilities of the same tokens under another model; two were not scored."""
    generator = torch.Generator().manual_seed(5)
    logits, targets, mask = make_batch()
    other = logits + scale * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    reference = logprobs_of(other, targets)
    reference[0, 4] = reference[2, 0] = torch.nan
    return logits, targets, mask, reference


def finite_differences(loss, logits: torch.Tensor) -> torch.Tensor:
    """Central differences of a scalar function, one logit at a time."""
    gradient, step = torch.zeros_like(logits), 1e-5
    for place in range(logits.numel()):
        shift = torch.zeros_like(logits).flatten()
        shift[place] = step
        up, down = (loss(logits + sign * shift.view_as(logits)).item() for sign in (1, -1))
        gradient.view(-1)[place] = (up - down) / (2 * step)
    return gradient


def gradient_of_factors(factors_of, logits, targets, mask):
    logits = logits.clone().requires_grad_()
    logprobs = logprobs_of(logits, targets)
    loss = weighted_nll(logprobs, mask, factors_of(logprobs), normaliser=1.0)
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(
    ("factors_of", "objective"),
    [
        (dft_factors, lambda p: 1 - p),
        (lambda x: dft_factors(x, beta=0.5), lambda p: (1 - p**0.5) / 0.5),
        (lambda x: dft_factors(x, beta=10.0), lambda p: (1 - p**10) / 10),
        (chord_phi_factors, lambda p: p**2 / 2 - p),
    ],
    ids=["dft", "root", "tenth power", "chord_phi"],
)
def test_detached_factors_descend_the_objective_that_they_stand_for(factors_of, objective):
    logits, targets, mask = make_batch()
    expected = finite_differences(
        lambda x: objective(logprobs_of(x, targets).exp())[mask].sum(), logits
    )
    found = gradient_of_factors(factors_of, logits, targets, mask)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # step 1e-5, squared


def test_chord_factors_are_p_times_one_minus_p():
    logits, targets, _ = make_batch()
    logprobs = logprobs_of(logits, targets)
    found = chord_phi_factors(logprobs.requires_grad_())
    for value, logprob in zip(found.flatten(), logprobs.flatten(), strict=True):
        p = math.exp(logprob.item())
        assert value.item() == pytest.approx(p * (1 - p), rel=1e-12)
    assert not found.requires_grad
    assert chord_phi_factors(torch.tensor([[0.0, -torch.inf, math.log(0.5)]])).tolist() == [
        [0.0, 0.0, 0.25]
    ]


@pytest.mark.parametrize("k", [2, 5, 7])
def test_top_entropy_is_that_of_the_likeliest_tokens_alone(k):
    logits, _, _ = make_batch()
    found = top_entropy(logits.requires_grad_(), k=k)
    assert not found.requires_grad
    for row, value in zip(logits.softmax(-1).reshape(-1, 7), found.flatten(), strict=True):
        top = sorted(row.tolist(), reverse=True)[:k]
        expected = -sum(p / sum(top) * math.log(p / sum(top)) for p in top)
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_entropy_factors_are_one_where_nothing_is_known_and_zero_where_all_is():
    logits = torch.tensor([[[0.0] * 6, [900.0] + [0.0] * 5]], dtype=torch.float64)
    entropy = top_entropy(logits, k=4)
    torch.testing.assert_close(
        entropy_factors(entropy, k=4, power=2.0), torch.tensor([[1.0, 0.0]]).double()
    )
    half = torch.tensor([[math.log(2.0)]], dtype=torch.float64)
    assert entropy_factors(half, k=4, power=3.0).item() == pytest.approx(0.125, rel=1e-12)
    assert entropy_factors(half, k=4, power=0.0).item() == 1.0


@pytest.mark.parametrize(("temperature", "high"), [(1.0, 16.0), (0.5, 1.2), (3.0, 16.0)])
def test_sequence_factors_are_the_clipped_power_of_the_mean_ratio(temperature, high):
    logits, targets, mask, reference = make_reference()
    logprobs = logprobs_of(logits, targets).requires_grad_()
    index = torch.tensor([[0] * 5, [1] * 5, [2, 2, 3, 3, 3]])  # the last row holds two examples
    found = iw_sequence_factors(
        logprobs, reference, mask, index, temperature=temperature, low=0.9, high=high
    )
    assert not found.requires_grad
    for example in range(4):
        ratios = [
            (logprobs[i, t] - reference[i, t]).item()
            for i in range(3)
            for t in range(LENGTHS[i])
            if index[i, t] == example and not reference[i, t].isnan()
        ]
        expected = min(max(math.exp(temperature * sum(ratios) / len(ratios)), 0.9), high)
        for value in found[index == example]:
            assert value.item() == pytest.approx(expected, rel=1e-12)


def test_an_example_that_the_reference_did_not_score_has_sequence_factor_one():
    reference = torch.tensor([[torch.nan, torch.nan], [-1.0, -1.0]])
    mask, index = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]])
    found = iw_sequence_factors(torch.zeros(2, 2), reference, mask, index)
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [math.e, math.e]]))


def test_token_factors_are_the_clipped_ratios():
    logits, targets, _, reference = make_reference(scale=6.0)
    logprobs = logprobs_of(logits, targets).requires_grad_()
    found = iw_token_factors(logprobs, reference)
    assert not found.requires_grad
    for value, own, other in zip(
        found.flatten(), logprobs.flatten().tolist(), reference.flatten().tolist(), strict=True
    ):
        expected = 1.0 if math.isnan(other) else min(max(math.exp(own - other), 0.2), 1.8)
        assert value.item() == pytest.approx(expected, rel=1e-12)
    assert {0.2, 1.8, 1.0} < set(found.flatten().tolist())


def test_factors_of_a_reference_are_held_constant_by_the_gradient():
    logits, targets, mask, reference = make_reference()
    index = torch.arange(3)[:, None].expand(3, 5)
    for factors_of in (
        lambda x: iw_token_factors(x, reference),
        lambda x: iw_sequence_factors(x, reference, mask, index),
    ):
        held = factors_of(logprobs_of(logits, targets))
        expected = finite_differences(
            lambda x, held=held: weighted_nll(logprobs_of(x, targets), mask, held, normaliser=1.0),
            logits,
        )
        found = gradient_of_factors(factors_of, logits, targets, mask)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)  # step 1e-5, squared


def test_psft_is_the_clipped_surrogate_with_its_gradient():
    logits, targets, mask, reference = make_reference(scale=0.5)
    old = reference.nan_to_num(nan=-1.0)

    def surrogate(x):
        ratio = (logprobs_of(x, targets) - old).exp()
        return -torch.minimum(ratio, ratio.clamp(1 - 0.2, 1 + 0.28))[mask].sum()

    def loss(x):
        losses = psft_losses(logprobs_of(x, targets), old)
        return weighted_loss(losses, mask, torch.ones_like(losses), normaliser=1.0)

    clipped = (logprobs_of(logits, targets) - old).exp() > 1.28
    assert 0 < clipped[mask].sum() < mask.sum()
    torch.testing.assert_close(loss(logits), surrogate(logits), rtol=1e-12, atol=0.0)
    own = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(own), own)
    torch.testing.assert_close(found, finite_differences(surrogate, logits), rtol=1e-6, atol=1e-9)
    assert (found[clipped] == 0).all()


def test_psft_survives_a_token_that_was_nearly_impossible():
    logprobs = torch.tensor([[-0.5]], requires_grad=True)
    loss = psft_losses(logprobs, torch.tensor([[-200.0]])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(-1.28, rel=1e-6)
    assert logprobs.grad.item() == 0.0


def test_two_outcome_kl_is_its_formula_with_its_gradient():
    logits, targets, mask, base = make_reference()
    known = mask & ~base.isnan()

    def formula(x):
        p, q = logprobs_of(x, targets)[known].exp(), base[known].exp()
        return (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum()

    def loss(x):
        losses = two_outcome_kl_losses(logprobs_of(x, targets), base)
        return weighted_loss(losses, mask, torch.ones_like(losses), normaliser=1.0)

    torch.testing.assert_close(loss(logits), formula(logits), rtol=1e-12, atol=0.0)
    assert torch.autograd.gradcheck(loss, logits.clone().requires_grad_())


def test_two_outcome_kl_never_exceeds_the_divergence_over_the_vocabulary():
    logits, targets, _ = make_batch()
    generator = torch.Generator().manual_seed(7)
    other = 2 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    for size in (7, 2):  # with two tokens there is nothing to merge
        own, base, wanted = logits[..., :size], other[..., :size], targets % size
        full = functional.kl_div(
            own.log_softmax(-1), base.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        found = two_outcome_kl_losses(logprobs_of(own, wanted), logprobs_of(base, wanted))
        assert (found >= 0).all()
        if size == 7:
            assert (found < full).all()
        else:
            torch.testing.assert_close(found, full, rtol=1e-10, atol=1e-12)


def test_the_slope_of_the_kl_is_how_far_the_probability_is_off():
    logits, targets, _, base = make_reference()
    logits.requires_grad_()
    logprobs = logprobs_of(logits, targets)
    kl = two_outcome_kl_losses(logprobs, base)
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    found = gradient.gather(-1, targets[..., None]).squeeze(-1)
    expected = (logprobs.exp() - base.exp()).masked_fill(base.isnan(), 0.0)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    assert (kl[base.isnan()] == 0).all()


def test_kl_of_a_sure_token_is_finite():
    logprobs = torch.tensor([[0.0, -30.0, 0.0]], requires_grad=True)
    kl = two_outcome_kl_losses(logprobs, torch.tensor([[-30.0, 0.0, 0.0]]))
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert kl[0, 2] == 0.0
    assert torch.isfinite(logprobs.grad).all()
