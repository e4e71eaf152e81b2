"""The weighted loss: cross-entropy, finite differences, and what its symmetries demand."""

import pytest
import torch
from torch.nn import functional

from atlantis.numerics.losses import dft_factors, weighted_nll

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
