"""Which rows go through the model together, and what happens when they do not fit."""

from collections.abc import Sequence

import torch

from atlantis.data.tokenization import TokenizedExample
from atlantis.records import TokenScores
from atlantis.scoring.scorer import Scorer, unscored


def make_batches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Group rows of similar length so that ``rows x longest row`` stays within the budget.

    Longest first, so that running out of memory shows at once; ties keep the order of the input. A
    row longer than the budget is a batch of its own.

    Returns:
        Row numbers of each batch; a pure function of the lengths and the budget.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def score_what_fits(scorer: Scorer, batch: Sequence[TokenizedExample]) -> list[TokenScores]:
    """Score a batch; one that does not fit into memory is halved, and only that one.

    A single row that does not fit gets the status ``oom``.
    """
    try:
        return scorer.score(batch)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the handler: the error holds the tensors of the failed pass.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        return [unscored(batch[0], "oom")]
    half = len(batch) // 2
    return [*score_what_fits(scorer, batch[:half]), *score_what_fits(scorer, batch[half:])]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "DefaultCPUAllocator: can't allocate memory" in str(error)
