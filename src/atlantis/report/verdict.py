"""The comparison in one sentence, computed from the intervals and nothing else."""

from collections.abc import Mapping
from typing import Any, Literal

from atlantis.report.words import (
    arm_in_sentence,
    arm_title,
    counted,
    estimate,
    fixed,
    from_to,
    interval_decimals,
    metric_title,
    percent,
)

Outcome = Literal["helps", "harms", "no difference shown"]
Difference = Mapping[str, float]
_NOT_CANDIDATES = {"oracle"}
"""Arms that see what nobody has in practice: the right labels."""


def outcome(difference: Difference) -> Outcome:
    """What an interval of a difference shows: all above zero, all below, or neither."""
    if difference["low"] > 0:
        return "helps"
    return "harms" if difference["high"] < 0 else "no difference shown"


def verdict(comparison: Mapping[str, Any], headline_arm: str) -> dict[str, Any]:
    """The outcome of the headline arm and of the control, and what to say about them.

    ``sentence`` holds the comparison with the baseline and whether the control does the same,
    ``details`` further sentences: against the control itself, better arms, a single seed.
    """
    against_baseline = _difference(comparison, headline_arm, "versus_baseline")
    if against_baseline is None:
        return {
            "outcome": None,
            "control_outcome": None,
            "sentence": _not_compared(comparison, headline_arm),
            "details": [],
        }
    control = comparison.get("control")
    of_control = _difference(comparison, control, "versus_baseline")
    details = [
        _against_control(comparison, headline_arm),
        _better_arms(comparison, headline_arm),
        _seed_caveat(comparison),
    ]
    return {
        "outcome": outcome(against_baseline),
        "control_outcome": outcome(of_control) if of_control else None,
        "sentence": _lead(comparison, headline_arm, against_baseline)
        + _control_clause(comparison, outcome(against_baseline), of_control),
        "details": [detail for detail in details if detail],
    }


def _difference(comparison: Mapping[str, Any], arm: str | None, versus: str) -> Difference | None:
    """The headline metric's difference of an arm to the baseline or control, where there is one."""
    differences = comparison["arms"].get(arm, {}).get(versus) or {}
    return differences.get(comparison["headline"])


def _not_compared(comparison: Mapping[str, Any], headline_arm: str) -> str:
    headline, arms = comparison["headline"], comparison["arms"]
    shown = headline_arm if headline_arm in arms else next(iter(arms))
    value = arms[shown]["metrics"][headline]
    score = estimate(value["mean"], value["low"], value["high"])
    return (
        f"Nothing was compared: {arm_in_sentence(shown)} reaches {score} {metric_title(headline)} "
        f"({_basis(comparison)}), without an arm to compare it with."
    )


def _basis(comparison: Mapping[str, Any]) -> str:
    return f"{counted(len(comparison['seeds']), 'seed')}, n = {comparison['num_test']:,}"


def _lead(comparison: Mapping[str, Any], arm: str, difference: Difference) -> str:
    name, baseline = arm_in_sentence(arm), arm_in_sentence(comparison["baseline"])
    metric = metric_title(comparison["headline"])
    low, high = difference["low"], difference["high"]
    value = fixed(difference["difference"], interval_decimals(low, high), signed=True)
    interval = f"({percent(comparison['level'])} interval {from_to(low, high)}"
    basis = f"{interval}, {_basis(comparison)})"
    match outcome(difference):
        case "helps":
            return f"{name} beats {baseline} by {value.removeprefix('+')} {metric} {basis}"
        case "harms":
            return f"{name} does worse than {baseline}: {value} {metric} {basis}"
        case "no difference shown":
            return f"{name} is not shown to differ from {baseline}: {value} {metric} {basis}"


def _control_clause(
    comparison: Mapping[str, Any], lead: Outcome, of_control: Difference | None
) -> str:
    """Whether the control does what the headline arm does."""
    if of_control is None:
        return "; no control was run."
    control = arm_in_sentence(comparison["control"])
    low, high = of_control["low"], of_control["high"]
    by = f"{estimate(of_control['difference'], low, high, signed=True)}"
    clauses: dict[tuple[Outcome, Outcome], str] = {
        ("helps", "helps"): f"but so does {control}, {by}",
        ("helps", "no difference shown"): f"{control} does not",
        ("helps", "harms"): f"{control} does worse, {by}",
        ("harms", "helps"): f"{control} does better, {by}",
        ("harms", "no difference shown"): f"{control} is not shown to",
        ("harms", "harms"): f"so does {control}, {by}",
        ("no difference shown", "helps"): f"{control} does better, {by}",
        ("no difference shown", "no difference shown"): f"neither is {control}",
        ("no difference shown", "harms"): f"{control} does worse, {by}",
    }
    return f"; {clauses[lead, outcome(of_control)]}."


def _against_control(comparison: Mapping[str, Any], arm: str) -> str | None:
    difference = _difference(comparison, arm, "versus_control")
    if difference is None:
        return None
    low, high = difference["low"], difference["high"]
    by = estimate(difference["difference"], low, high, signed=True)
    name, control = arm_in_sentence(arm), arm_in_sentence(comparison["control"])
    match outcome(difference):
        case "helps":
            return (
                f"Against {control}, which gives the same weights to other examples, "
                f"{name} gains {by.removeprefix('+')}."
            )
        case "harms":
            return f"{name} does worse than {control}: {by}."
        case "no difference shown":
            return (
                f"{name} is not shown to differ from {control} ({by}): nothing here shows that "
                "it matters which example gets which weight."
            )


def _better_arms(comparison: Mapping[str, Any], headline_arm: str) -> str | None:
    """Arms anyone could have trained instead, and that score higher on average."""
    headline, arms = comparison["headline"], comparison["arms"]
    means = {arm: entry["metrics"][headline]["mean"] for arm, entry in arms.items()}
    better = [
        arm
        for arm in sorted(arms, key=lambda arm: -means[arm])
        if means[arm] > means[headline_arm] and arm not in _NOT_CANDIDATES
    ]
    if not better:
        return None
    scores = ", ".join(
        f"{arm_title(arm)} {_score(arms[arm]['metrics'][headline])}" for arm in better
    )
    return f"Higher mean score than {arm_in_sentence(headline_arm)}: {scores}."


def _score(value: Mapping[str, float]) -> str:
    return estimate(value["mean"], value["low"], value["high"])


def _seed_caveat(comparison: Mapping[str, Any]) -> str | None:
    if len(comparison["seeds"]) > 1:
        return None
    return "One seed: how much the result varies between training runs is not measured."
