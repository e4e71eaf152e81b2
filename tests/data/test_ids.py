"""Repeated ids among many, against a plain set."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlantis.data import ids
from atlantis.data.ids import SeenIds, id_digest


@pytest.mark.parametrize("num_pending", [1, 2, 7])
@given(names=st.lists(st.integers(0, 40), max_size=80))
def test_exactly_the_repeated_ids_are_found(num_pending, names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_NUM_PENDING", num_pending)
        seen = SeenIds()
        found = set()
        for name in names:
            found |= seen.add(str(name))
        found |= seen.repeated()
    assert found == {id_digest(str(name)) for name in names if names.count(name) > 1}


def test_a_repeated_id_is_noticed_soon_among_many():
    seen = SeenIds()
    noticed = [number for number in range(200_000) if seen.add(str(min(number, 150_000)))]
    assert 150_001 <= noticed[0] < 150_001 + 2 * ids._NUM_PENDING


def test_eight_bytes_are_kept_for_an_id():
    seen = SeenIds()
    for number in range(100_000):
        seen.add(str(number))
    seen.repeated()
    assert sum(run.nbytes for run in seen._runs) == 8 * 100_000
    assert all(np.all(np.diff(run) > 0) for run in seen._runs)
