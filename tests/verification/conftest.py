"""Fixtures of the verification tests: claims in short, and one verifier with running workers."""

import pytest

from atlantis.verification.claims import Claim
from atlantis.verification.config import MathsConfig, open_verifier


@pytest.fixture(scope="session")
def claim():
    """A claim, from what matters to a test."""

    def make(gold, completion, *, example_id="q", finish_reason="stop"):
        return Claim(example_id, "Solve it.", gold, completion, finish_reason)

    return make


@pytest.fixture(scope="session")
def boxed(claim):
    """A claim whose completion boxes an answer."""

    def make(gold, answer, *, example_id="q"):
        return claim(gold, rf"So it is $\boxed{{{answer}}}$.", example_id=example_id)

    return make


@pytest.fixture(scope="module")
def symbolic():
    """math-verify with the default limits, its workers running."""
    with open_verifier(MathsConfig(num_workers=2, deadline_seconds=30)) as verifier:
        yield verifier
