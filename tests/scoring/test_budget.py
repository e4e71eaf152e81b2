"""The batch size found from two trial passes."""

import pytest

from atlantis.scoring.budget import MOST_TOKENS, probed_budget

GIB = 1 << 30


@pytest.mark.parametrize(
    ("constant", "per_token", "free", "expected"),
    [
        (2 * GIB, 100_000, 10 * GIB, 32_768),  # (8 - 2) GiB / 100 kB = 64,424 tokens
        (0, 100_000, 10 * GIB, MOST_TOKENS),  # 85,899 fit, more than is of use
        (7 * GIB, 1_000_000, 10 * GIB, 1024),  # 1,073 fit
    ],
)
def test_the_budget_fits_and_is_a_power_of_two(constant, per_token, free, expected):
    found = probed_budget(lambda tokens: constant + tokens * per_token, free_bytes=free)
    assert found == expected
    assert constant + found * per_token <= 0.8 * free


def test_small_differences_of_the_free_memory_give_the_same_budget():
    budgets = {
        probed_budget(lambda tokens: GIB + tokens * 300_000, free_bytes=20 * GIB + noise)
        for noise in range(0, GIB, GIB // 7)
    }
    assert len(budgets) == 1


def test_without_room_the_smallest_budget_is_tried():
    # A batch that does not fit is halved later on.
    assert probed_budget(lambda tokens: tokens * 10**7, free_bytes=GIB) == 1024
