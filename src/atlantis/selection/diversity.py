r"""Facility location: rows that stand for many others.

.. math:: f(S) = \sum_i \max_{j \in S} s(i, j) \qquad s(i, j) = \frac{1 + \cos(e_i, e_j)}{2}

A greedy choice is within 1 - 1/e of the best. Gains only fall as the selection grows, so that most
of them need not be computed again (lazy greedy).
"""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def facility_location(
    embeddings: NDArray[np.float32], ids: Sequence[str], count: int
) -> NDArray[np.intp]:
    """Rows that cover the others best, in the order in which they are taken.

    Memory is one similarity per pair of rows, float32: for more than some ten thousand rows, choose
    among a larger selection by another method.

    Args:
        embeddings: One vector per row, ``[row, dimension]``, not zero.
        ids: Of the rows; ties go to the first.
        count: How many to take.
    """
    order = np.argsort(np.array(ids), kind="stable")
    vectors = embeddings[order].astype(np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = (1 + vectors @ vectors.T) / 2
    covered = np.zeros(len(ids), dtype=np.float32)
    gains = [(-float(row.sum()), number) for number, row in enumerate(similarity)]
    heapq.heapify(gains)
    taken: list[int] = []
    while gains and len(taken) < count:
        _, number = heapq.heappop(gains)
        gain = float(np.maximum(similarity[number] - covered, 0).sum())
        if gains and (-gain, number) > gains[0]:
            heapq.heappush(gains, (-gain, number))
            continue
        taken.append(number)
        covered = np.maximum(covered, similarity[number])
    return order[taken]
