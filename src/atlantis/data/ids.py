"""Finding repeated ids among very many without keeping them."""

import hashlib
from array import array

import numpy as np
import numpy.typing as npt

_NUM_PENDING = 1 << 14
"""Ids between two comparisons: a repeated id is noticed at most so many rows late."""


def id_digest(example_id: str) -> int:
    """Eight bytes that stand for an id; two ids share them with probability 2^-64."""
    return int.from_bytes(hashlib.blake2b(example_id.encode(), digest_size=8).digest())


class SeenIds:
    """The digests of all ids so far, in 8 bytes each.

    Sorted runs, each more than twice as long as the next, as in a log-structured merge tree: n ids
    cost O(n log n) time in total, and for a moment 16 n bytes when two runs become one.
    """

    def __init__(self) -> None:
        self._pending = array("Q")
        self._runs: list[npt.NDArray[np.uint64]] = []

    def add(self, example_id: str) -> set[int]:
        """Remember an id.

        Returns:
            Digests that occur twice, now and then; empty nearly always.
        """
        self._pending.append(id_digest(example_id))
        return self.repeated() if len(self._pending) == _NUM_PENDING else set()

    def repeated(self) -> set[int]:
        """Digests of the ids added since the last comparison that occur twice among all."""
        new = np.sort(np.array(self._pending, dtype=np.uint64))
        del self._pending[:]
        found = set(new[1:][new[1:] == new[:-1]].tolist())
        for run in self._runs:
            positions = np.minimum(np.searchsorted(run, new), len(run) - 1)
            found |= set(new[run[positions] == new].tolist())
        while self._runs and len(self._runs[-1]) <= 2 * len(new):
            new = np.concatenate([self._runs.pop(), new])
            new.sort(kind="stable")  # fast on runs that are sorted already
        if len(new):
            self._runs.append(new)
        return found
