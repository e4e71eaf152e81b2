"""Ranking and cutting off: the right counts, ties by id, nothing from the order of the rows."""

import itertools
import random

import numpy as np
import pytest

from atlantis.numerics.diagnostics import length_deciles
from atlantis.selection.diversity import facility_location
from atlantis.selection.ranking import (
    ifd_loss_ratio,
    ifd_perplexity_ratio,
    matched_rows,
    num_selected,
    random_rows,
    top,
)


@pytest.mark.parametrize(
    ("share", "num_rows", "expected"),
    [
        (0.1, 52_002, 5_200),
        (0.05, 52_002, 2_600),
        (0.15, 52_002, 7_800),
        (0.1, 6_000, 600),
        (0.15, 6_000, 900),
        (0.1, 7, 1),
        (0.29, 100, 29),
        (0.07, 100, 7),
        (1.0, 7, 7),
        (1, 7, 1),
        (600, 52_002, 600),
        (9, 7, 7),
    ],
)
def test_a_share_is_rounded_down_but_not_to_none(share, num_rows, expected):
    assert num_selected(share, num_rows) == expected


def test_the_two_ratios_agree_with_their_definitions():
    given, alone = np.array([1.0, 3.0, 2.0, 0.0]), np.array([2.0, 2.0, 2.0, 0.0])
    assert ifd_perplexity_ratio(given, alone) == pytest.approx([np.e**-1, np.e, 1.0, 1.0])
    assert ifd_loss_ratio(given, alone) == pytest.approx([0.5, 1.5, 1.0, 1.0])
    assert ifd_perplexity_ratio(np.array([900.0]), np.array([1.0])) == np.inf  # no exp over exp
    assert ifd_loss_ratio(np.array([1.0]), np.array([0.0])) == np.inf


def test_ties_go_by_id_whatever_the_order_of_the_rows():
    rows = [("b", 2.0), ("a", 2.0), ("d", 3.0), ("c", 1.0), ("e", 2.0)]
    for order in itertools.permutations(rows):
        ids = [name for name, _ in order]
        found = top(np.array([value for _, value in order]), ids, 3)
        assert [ids[row] for row in found] == ["d", "a", "b"]


def test_a_value_that_is_nan_is_never_ranked():
    with pytest.raises(ValueError, match="NaN"):
        top(np.array([1.0, np.nan]), ["a", "b"], 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_rows_follow_from_ids_and_seed_alone(seed):
    ids = [f"r{row}" for row in range(50)]
    first = {ids[row] for row in random_rows(ids, 10, seed=seed)}
    shuffled = random.Random(5).sample(ids, 50)
    assert {shuffled[row] for row in random_rows(shuffled, 10, seed=seed)} == first
    assert len(first) == 10
    assert first != {ids[row] for row in random_rows(ids, 10, seed=seed + 7)}


def test_matched_rows_have_as_many_of_each_length():
    lengths = np.random.default_rng(0).integers(1, 400, size=1000)
    ids = [f"r{row}" for row in range(1000)]
    chosen = top(lengths + 0.0, ids, 250)  # long ones
    groups = length_deciles(lengths)
    found = matched_rows(groups, chosen, ids, seed=3)
    assert len(set(found.tolist())) == 250
    assert np.bincount(groups[found]).tolist() == np.bincount(groups[chosen]).tolist()
    assert set(found.tolist()) != set(chosen.tolist())


def greedy(vectors, count):
    """Every gain computed anew in float64."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = (1 + unit @ unit.T) / 2
    taken, covered = [], np.zeros(len(vectors))
    for _ in range(count):
        gains = [
            -1 if j in taken else np.maximum(similarity[j], covered).sum()
            for j in range(len(vectors))
        ]
        taken.append(int(np.argmax(gains)))
        covered = np.maximum(covered, similarity[taken[-1]])
    return taken


def test_lazy_facility_location_is_the_greedy_one():
    vectors = np.random.default_rng(1).normal(size=(80, 5))
    ids = [f"r{row:03}" for row in range(80)]
    found = facility_location(vectors.astype(np.float32), ids, 20)
    assert found.tolist() == greedy(vectors, 20)


def test_facility_location_takes_one_of_each_heap_first():
    rng = np.random.default_rng(2)
    centres = np.eye(4)
    vectors = np.concatenate([c + 0.01 * rng.normal(size=(9, 4)) for c in centres])
    found = facility_location(vectors.astype(np.float32), [f"r{i:02}" for i in range(36)], 4)
    assert sorted(found // 9) == [0, 1, 2, 3]
    order = rng.permutation(36)
    again = facility_location(vectors[order].astype(np.float32), [f"r{i:02}" for i in order], 4)
    assert {int(order[i]) for i in again} == set(found.tolist())
