"""Metrics of maths problems that were each answered several times. Pure NumPy.

Every metric is a mean over problems of a number per problem, and its interval comes from drawing
problems: more samples of the same 30 problems do not make it narrower than those problems allow.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlantis.errors import ConfigError, DataError
from atlantis.numerics.statistics import Interval, paired_bootstrap_counts, percentile_interval
from atlantis.verification.answers import canonical
from atlantis.verification.claims import CUT_OFF, Verdict

PerProblem = NDArray[np.float64]
_UNGRADED = {"no_answer": "no_answer_rate", "timeout": "timeout_rate", "error": "error_rate"}


@dataclass(frozen=True, slots=True)
class AnsweredProblem:
    """One problem and what became of its samples."""

    example_id: str
    verdicts: tuple[Verdict, ...]
    finish_reasons: tuple[str, ...]
    """One for each verdict."""


class Majority(NamedTuple):
    """The answer that most samples give."""

    answer: str | None
    """As its earliest sample spells it; None if no sample answers."""
    num_votes: int
    is_correct: bool


def pass_at_k(num_samples: int, num_correct: NDArray[np.integer[Any]], k: int) -> PerProblem:
    r"""Chance that at least one of k samples, drawn without replacement, is correct.

    .. math:: 1 - \binom{n - c}{k} / \binom{n}{k} = 1 - \prod_{i=n-c+1}^{n} (1 - k / i)

    for n samples of which c are correct. The product has c factors between 0 and 1 and no large
    number; it is 0 if k > n - c. Unbiased for what k fresh samples would give.

    Raises:
        ConfigError: k is not between 1 and n.

    References:
        Chen et al., *Evaluating Large Language Models Trained on Code* (2021), equation 1.
    """
    if not 1 <= k <= num_samples:
        raise ConfigError(f"pass@{k} needs at least {max(k, 1)} samples of each problem and k >= 1")
    i = np.arange(1, num_samples + 1)
    is_factor = i[None, :] > num_samples - np.asarray(num_correct)[:, None]
    factors = np.where(is_factor, np.maximum(1.0 - k / i, 0.0), 1.0)
    return 1.0 - factors.prod(axis=1)


def majority(verdicts: Sequence[Verdict]) -> Majority:
    """The vote of all samples that answer; those that do not have no vote.

    Answers with the same `atlantis.verification.answers.canonical` form are one candidate. Of
    several candidates with as many votes, the one whose first vote came earliest wins, so that
    maj@1 is the first sample. It is correct if any of its votes was graded as correct.
    """
    forms = [None if v.answer is None else canonical(v.answer) for v in verdicts]
    votes = Counter(form for form in forms if form is not None)
    if not votes:
        return Majority(None, 0, is_correct=False)
    winner, num_votes = votes.most_common(1)[0]  # ties: in the order of first votes
    voters = [v for v, form in zip(verdicts, forms, strict=True) if form == winner]
    is_correct = any(voter.status == "correct" for voter in voters)
    return Majority(voters[0].answer, num_votes, is_correct)


def per_problem_metrics(
    problems: Sequence[AnsweredProblem], *, ks: Iterable[int]
) -> dict[str, PerProblem]:
    """Every metric of every problem, in the order of the problems.

    ``avg@n`` is the share of correct samples, unrounded; ``pass@k`` for each of ``ks``;
    ``maj@n`` 1 or 0; then the shares of samples that were cut off (``truncation_rate``, whether or
    not they still gave an answer), that are complete without an answer, and that could not be
    graded, in time or at all. All of these count as not correct.

    Raises:
        DataError: There are no problems, or not all have as many samples.
        ConfigError: A k is larger than the number of samples.
    """
    num_samples = _num_samples(problems)
    correct = np.array([[v.status == "correct" for v in p.verdicts] for p in problems])
    cut_off = np.array([[r == CUT_OFF for r in p.finish_reasons] for p in problems])
    num_correct = correct.sum(axis=1)
    metrics = {f"avg@{num_samples}": num_correct / num_samples}
    metrics |= {f"pass@{k}": pass_at_k(num_samples, num_correct, k) for k in sorted(set(ks))}
    voted = [majority(p.verdicts).is_correct for p in problems]
    metrics[f"maj@{num_samples}"] = np.array(voted, dtype=np.float64)
    metrics["truncation_rate"] = cut_off.mean(axis=1)
    for status, name in _UNGRADED.items():
        metrics[name] = np.array([[v.status == status for v in p.verdicts] for p in problems]).mean(
            axis=1
        )
    return metrics


def maths_metrics(
    problems: Sequence[AnsweredProblem],
    *,
    verifier: str,
    ks: Iterable[int] = (1,),
    num_replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Each metric with n and a percentile bootstrap interval over problems; plain JSON.

    Args:
        problems: All problems of a benchmark.
        verifier: The name of what graded.
        ks: Which pass@k to report.
        num_replicates: Bootstrap replicates.
        level: Coverage of the intervals.
        seed: Makes the draws; the same arguments give the same numbers.

    Raises:
        DataError: There are no problems, or not all have as many samples.
        ConfigError: A k is larger than the number of samples.
    """
    metrics = per_problem_metrics(problems, ks=ks)
    replicates = _replicates(metrics, num_replicates, seed)
    return {
        "verifier": verifier,
        "num_problems": len(problems),
        "num_samples": _num_samples(problems),
        "num_replicates": num_replicates,
        "level": level,
        "metrics": {
            name: _bounds("mean", float(values.mean()), replicates[name], level)
            | {"n": len(problems)}
            for name, values in metrics.items()
        },
    }


def problem_rows(problems: Sequence[AnsweredProblem]) -> list[dict[str, Any]]:
    """One row of counts for each problem, for the per-problem table."""
    rows: list[dict[str, Any]] = []
    for problem in problems:
        counts = Counter(verdict.status for verdict in problem.verdicts)
        vote = majority(problem.verdicts)
        rows.append(
            {
                "example_id": problem.example_id,
                "num_samples": len(problem.verdicts),
                "num_correct": counts["correct"],
                "num_cut_off": sum(reason == CUT_OFF for reason in problem.finish_reasons),
                "num_no_answer": counts["no_answer"],
                "num_timeout": counts["timeout"],
                "num_error": counts["error"],
                "majority_answer": vote.answer,
                "majority_votes": vote.num_votes,
                "majority_correct": vote.is_correct,
            }
        )
    return rows


def _num_samples(problems: Sequence[AnsweredProblem]) -> int:
    if not problems:
        raise DataError("there are no problems to measure; give at least one")
    num_samples = len(problems[0].verdicts)
    for problem in problems:
        given = len(problem.verdicts)
        if given != num_samples or given != len(problem.finish_reasons) or not given:
            raise DataError(
                f"problem {problem.example_id!r} has {given} verdicts and "
                f"{len(problem.finish_reasons)} finish reasons, the first problem {num_samples}; "
                "sample every problem as often, at least once"
            )
    return num_samples


def _replicates(
    metrics: Mapping[str, PerProblem], num_replicates: int, seed: int
) -> dict[str, PerProblem]:
    """The mean over drawn problems of each metric, ``[replicate]``; one draw for all metrics."""
    table = np.stack(list(metrics.values()), axis=1)
    rng = np.random.default_rng(seed)
    chunks = [
        counts @ table / len(table)
        for counts in paired_bootstrap_counts(len(table), num_replicates, rng)
    ]
    return dict(zip(metrics, np.concatenate(chunks).T, strict=True))


def _bounds(name: str, estimate: float, replicates: PerProblem, level: float) -> dict[str, Any]:
    interval: Interval = percentile_interval(estimate, replicates, level=level)
    return {name: interval.estimate, "low": interval.low, "high": interval.high}
