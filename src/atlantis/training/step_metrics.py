"""What the trainer logs beside its loss, from sums that add up over micro-batches and ranks."""

import torch
from torch import Tensor

from atlantis.training.losses import TokenBatch


def example_index(inputs: dict[str, Tensor]) -> Tensor:
    """Number of the example that each token of a batch belongs to, ``[batch, token]``.

    A flattened batch has one row, whose positions start at 0 with every example.
    """
    if "position_ids" in inputs:
        starts = inputs["position_ids"] == 0
        return (starts.flatten().long().cumsum(0) - 1).view_as(starts)
    labels = inputs["labels"]
    return torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)


def weight_sums(weights: Tensor, token_counts: Tensor, index: Tensor) -> Tensor:
    """Sums over the examples of one batch, float64.

    Args:
        weights: Weight of each token, without the normaliser's share.
        token_counts: What each token adds to the normaliser; 0 where it is not trained on.
        index: Number of each token's example.

    Returns:
        The sums of count times weight, of counts, of the examples' weights and of their squares. An
        example's weight is the mean of its trained tokens'.
    """
    trained = (token_counts > 0).double()
    zeros = weights.new_zeros(int(index.max()) + 1, dtype=torch.float64)
    flat = index.flatten()
    sums = zeros.index_add(0, flat, (weights * trained).flatten())
    example_weights = sums / zeros.index_add(0, flat, trained.flatten()).clamp(min=1.0)
    return torch.stack(
        [
            (token_counts * weights).double().sum(),
            token_counts.double().sum(),
            example_weights.sum(),
            example_weights.square().sum(),
        ]
    )


def weight_metrics(sums: Tensor) -> dict[str, float]:
    """Mean weight as the normaliser counts, and effective sample size, of one optimizer step."""
    weighted, count, weight, square = sums.tolist()
    metrics = {"mean_weight": weighted / count} if count else {}
    return metrics | ({"effective_sample_size": weight**2 / square} if square else {})


def token_sums(batch: TokenBatch, weights: Tensor, num_correct: Tensor) -> Tensor:
    """Sums over the trained tokens of one batch, float64, for `token_metrics`."""
    with torch.no_grad():
        logprobs = batch.logprobs.double()
        ends = batch.mask & batch.is_end_of_turn
        return torch.stack(
            [
                batch.mask.sum().double(),
                -logprobs.sum(),
                num_correct.double(),
                (weights * batch.mask).double().sum(),
                -(weights * logprobs).sum(),
                ends.double().sum(),
                logprobs.exp()[ends].sum(),
            ]
        )


def token_metrics(sums: Tensor) -> dict[str, float]:
    """Means per trained token; those over nothing are left out."""
    num_trained, nll, num_correct, weight, weighted_nll, num_ends, end_probability = sums.tolist()
    metrics: dict[str, float] = {}
    if num_trained:
        metrics |= {"nll": nll / num_trained, "mean_token_accuracy": num_correct / num_trained}
    if weight:
        metrics["weighted_nll"] = weighted_nll / weight
    if num_ends:
        metrics["end_of_turn_probability"] = end_probability / num_ends
    return metrics
