"""Does weighting stand a chance? Asked before anything is trained with the weights.

Weights are only as good as the reference. On trusted rows that the reference never saw, this
measures how often it and the small model are right, and how far the weights would tell right
labels from wrong ones there; from how often the reference agrees with the given labels of the
training rows it estimates how many of those are right; and it looks at where the weight goes. True
labels of the training rows are not used.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from atlantis.evaluation.stage import true_label
from atlantis.records import Example, LabelSet

CONSTANT_ESS_FRACTION = 0.99
SHIFTED_CLASS_SHARE = 0.25
"""Largest share of the training mass that weights may move between classes."""
_CHANCE = 0.5
_LEAST_SKILL = 0.1
"""Under this much accuracy above chance, agreement says nothing about the labels."""


def ask_reference(
    predict: Callable[[Sequence[Example], str], Mapping[str, Any]],
    *,
    heldout: Sequence[Example],
    train: Sequence[Example],
    labels: LabelSet,
    reference: str,
    small: str,
    diagnostics: Mapping[str, Any],
    separation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Ask the reference and the small model, and report what that says of the weights.

    Args:
        predict: Rows and a model -> ``predicted`` labels and ``logprobs`` of all labels.
        heldout: Trusted rows that the reference was not trained on.
        train: Training rows, or a sample of them.
        labels: The closed set.
        reference: The reference model.
        small: The small base model.
        diagnostics: Diagnostics of the weights.
        separation: What `atlantis.evaluation.separation.separation` found.
    """
    true = [labels.names.index(true_label(row)) for row in heldout]
    by_reference, by_small = predict((*heldout, *train), reference), predict(heldout, small)
    # Rows are held-out ones first.
    positions = np.arange(len(true)), true
    return chance_report(
        heldout=heldout,
        reference_answers=by_reference["predicted"][: len(heldout)],
        small_answers=by_small["predicted"],
        reference_logprobs=float(by_reference["logprobs"][positions].mean()),
        small_logprobs=float(by_small["logprobs"][positions].mean()),
        train=train,
        reference_train_answers=by_reference["predicted"][len(heldout) :],
        num_labels=len(labels.names),
        diagnostics=diagnostics,
        separation=separation,
    )


def chance_report(
    *,
    heldout: Sequence[Example],
    reference_answers: Sequence[str],
    small_answers: Sequence[str],
    reference_logprobs: float,
    small_logprobs: float,
    train: Sequence[Example],
    reference_train_answers: Sequence[str],
    num_labels: int,
    diagnostics: Mapping[str, Any],
    separation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure, and say in one sentence whether the weights are likely to help.

    Args:
        heldout: Trusted rows that the reference was not trained on.
        reference_answers: The reference's label for each of them.
        small_answers: The small base model's label for each of them.
        reference_logprobs: Mean log-probability per true label under the reference.
        small_logprobs: The same under the small model.
        train: Training rows, or a sample of them, with their given labels.
        reference_train_answers: The reference's label for each of those.
        num_labels: Size of the closed set.
        diagnostics: Diagnostics of the weights, with the mean weight per class.
        separation: How far the weights tell right labels from wrong ones, where it was measured.

    Returns:
        ``verdict`` (``help``, ``nothing``, ``harm`` or ``unclear``), ``sentence`` and the figures.
    """
    gold = [true_label(row) for row in heldout]
    reference = _accuracy(gold, reference_answers)
    given = [str(row.label) for row in train]
    agreement = _accuracy(given, reference_train_answers)
    label_accuracy = estimated_label_accuracy(agreement["mean"], reference["mean"], num_labels)
    moved = _moved_share(diagnostics["mean_weight_by_group"].get("label", {}))
    verdict, reason = _judge(
        reference,
        label_accuracy,
        # The estimate falls where the reference's accuracy rises, so each bound of that has its
        # own, with the agreement at the bound that speaks against a verdict.
        low=estimated_label_accuracy(agreement["high"], reference["low"], num_labels),
        high=estimated_label_accuracy(agreement["low"], reference["high"], num_labels),
        ess_fraction=diagnostics["ess_fraction"],
        moved=moved,
        separation=separation,
        within_label=_within_label(diagnostics),
    )
    return {
        "verdict": verdict,
        "sentence": reason,
        "reference_accuracy": reference,
        "small_accuracy": _accuracy(gold, small_answers),
        "reference_mean_logprob": reference_logprobs,
        "small_mean_logprob": small_logprobs,
        "agreement_with_given_labels": agreement["mean"],
        "label_accuracy_estimate": label_accuracy,
        "mass_moved_between_classes": moved,
        "ess_fraction": diagnostics["ess_fraction"],
        "separation": None if separation is None else dict(separation),
    }


def _within_label(diagnostics: Mapping[str, Any]) -> bool:
    config = diagnostics.get("scheme", {})
    return "label" in (config.get("normalise_within"), config.get("scheme", {}).get("within"))


def estimated_label_accuracy(agreement: float, accuracy: float, num_labels: int) -> float | None:
    r"""Share of right labels, from how often a model of known accuracy agrees with them.

    If model and labels err independently and a wrong answer is any other label alike, they agree
    with probability :math:`A = a q + (1 - a)(1 - q) / (K - 1)`; this solves for q.

    Args:
        agreement: A, measured on the training rows.
        accuracy: a, measured on trusted rows.
        num_labels: K.

    Returns:
        q between 0 and 1, or None where the model is too weak to tell.
    """
    by_accident = (1.0 - accuracy) / (num_labels - 1)
    if accuracy - by_accident < _LEAST_SKILL:
        return None
    return float(np.clip((agreement - by_accident) / (accuracy - by_accident), 0.0, 1.0))


def _accuracy(gold: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """Share of right answers with an exact binomial 95 % interval."""
    num_right = sum(g == a for g, a in zip(gold, answers, strict=True))
    interval = stats.binomtest(num_right, len(gold)).proportion_ci(0.95)
    return {
        "mean": num_right / len(gold),
        "low": float(interval.low),
        "high": float(interval.high),
        "n": len(gold),
    }


def _moved_share(classes: Mapping[str, Mapping[str, float]]) -> float:
    """Total-variation distance between the classes' shares before and after weighting."""
    if not classes:
        return 0.0
    counts = np.array([group["n"] for group in classes.values()], dtype=np.float64)
    mass = counts * np.array([group["mean"] for group in classes.values()])
    return float(np.abs(counts / counts.sum() - mass / mass.sum()).sum() / 2)


def _judge(
    reference: Mapping[str, Any],
    label_accuracy: float | None,
    *,
    low: float | None,
    high: float | None,
    ess_fraction: float,
    moved: float,
    separation: Mapping[str, Any] | None,
    within_label: bool,
) -> tuple[str, str]:
    """Verdict and sentence; ``low`` and ``high`` are the labels' accuracy at those bounds."""
    figures = f"reference right on {reference['mean']:.0%} of {reference['n']} held-out rows"
    if label_accuracy is not None:
        figures += f", given labels on about {label_accuracy:.0%}"
    if separation is not None:
        figures += f", a right label outweighs a wrong one in {separation['mean']:.0%} of pairs"
    if ess_fraction > CONSTANT_ESS_FRACTION:
        return "nothing", f"The weights are nearly constant: expect plain SFT ({figures})."
    if separation is not None and separation["low"] <= _CHANCE:
        return "harm", f"The weights do not tell right labels from wrong ({figures})."
    if high is None or reference["high"] < high:
        # Within a class the reference only has to rank sentences, which it may do well.
        if within_label and separation is not None:
            return (
                "unclear",
                f"The reference knows less than the labels, but ranks them ({figures}).",
            )
        if high is None:
            return "harm", f"The reference is too weak to tell right labels from wrong ({figures})."
        return "harm", f"The reference knows less than the labels it is to judge ({figures})."
    if moved > SHIFTED_CLASS_SHARE:
        return "harm", f"The weights move {moved:.0%} of the mass between classes ({figures})."
    if low is not None and reference["low"] > low:
        return "help", f"The reference knows more than the labels it is to judge ({figures})."
    return "unclear", f"The reference knows about as much as the labels ({figures})."
