"""How arms, metrics and numbers are written, everywhere in the report."""

import math

ARM_TITLES = {
    "sft": "SFT",
    "atlantis": "ATLANTIS",
    "atlantis_within_label": "ATLANTIS, mean one within label",
    "atlantis_cross": "ATLANTIS-cross",
    "shuffled": "shuffled weights (control)",
    "drop_lowest": "drop lowest weights",
    "sft_trusted": "SFT + trusted rows",
    "oracle": "oracle: right labels only",
}
_ARM_IN_SENTENCE = {"sft": "plain SFT", "shuffled": "the shuffled-weights control"}
METRIC_TITLES = {
    "official_f1": "official macro-F1",
    "macro19": "macro-F1, 19 classes",
    "macro18": "macro-F1, 18 classes",
    "macro9_nodir": "macro-F1, 9, no direction",
    "macro10_nodir": "macro-F1, 10, no direction",
    "accuracy": "accuracy",
}
METRIC_DEFINITIONS = {
    "official_f1": "SemEval-2010 Task 8: F1 of each relation, where a wrong direction is both a "
    "miss and a false alarm, averaged over the relations present; the negative class is left out.",
    "macro19": "Unweighted mean of the F1 of all 19 directed classes, negative class included.",
    "macro18": "Unweighted mean of the F1 of the 18 directed classes, negative class left out.",
    "macro9_nodir": "Unweighted mean F1 of the 9 relations, direction ignored, negative left out.",
    "macro10_nodir": "Unweighted mean F1 of the 9 relations and the negative class, no direction.",
    "accuracy": "Share of test examples whose predicted label equals the right one.",
}
OUTCOME_WORDS = {
    "helps": "better",
    "harms": "worse",
    "no difference shown": "no difference shown",
}
"""What a difference shows, said of an arm in a table."""
MINUS = "\N{MINUS SIGN}"
_MOST_DECIMALS = 3
_DEGENERATE_DECIMALS = 2


def arm_title(arm: str) -> str:
    """The name of an arm in a table or a legend; an unknown arm keeps its own."""
    return ARM_TITLES.get(arm, arm)


def arm_in_sentence(arm: str) -> str:
    """The name of an arm inside a sentence."""
    return _ARM_IN_SENTENCE.get(arm, arm_title(arm))


def metric_title(metric: str) -> str:
    """The name of a metric; an unknown metric keeps its own."""
    return METRIC_TITLES.get(metric, metric)


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with that many decimals, a real minus sign, and no negative zero."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+' if signed else ''}{text}"


def significant(value: float, digits: int = 2) -> str:
    """A number that has no interval: two significant digits, whole from 100 on."""
    if value == 0 or abs(value) >= 100:
        return fixed(value, 0)
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return fixed(value, max(digits - 1 - magnitude, 0))


def percent(share: float) -> str:
    """A share in per cent: one decimal under ten, none above."""
    value = 100 * share
    return f"{fixed(value, 0 if value >= 10 or value == 0 else 1)} %"


def interval_decimals(low: float, high: float) -> int:
    """Decimals that an interval supports.

    The half-width keeps its first significant digit, or two where the first is a 1; the value and
    the ends are cut at the same place, and never after the third decimal. An interval without
    width says nothing about digits: two are shown.

    References:
        Taylor, *An Introduction to Error Analysis* (1997), section 2.2.
    """
    half_width = float(f"{(high - low) / 2:.2e}")  # 0.42 - 0.38 is not quite 0.04
    if half_width <= 0:
        return _DEGENERATE_DECIMALS
    magnitude = math.floor(math.log10(half_width))
    leading = math.floor(half_width / 10.0**magnitude)
    return min(max(-magnitude + (leading == 1), 0), _MOST_DECIMALS)


def bound(value: float, decimals: int, *, signed: bool) -> str:
    """One end of an interval; an end that rounds to zero without being zero keeps its side."""
    text = fixed(value, decimals, signed=signed)
    if signed and value != 0 and float(text.replace(MINUS, "-")) == 0:
        return ">0" if value > 0 else "<0"
    return text


def estimate(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """``0.41 [0.35, 0.46]``: a value with its interval, in the digits that this supports."""
    decimals = interval_decimals(low, high)
    ends = ", ".join(bound(end, decimals, signed=signed) for end in (low, high))
    return f"{fixed(value, decimals, signed=signed)} [{ends}]"


def from_to(low: float, high: float) -> str:
    """``0.35 to 0.46``, for sentences."""
    decimals = interval_decimals(low, high)
    return " to ".join(bound(end, decimals, signed=True).removeprefix("+") for end in (low, high))


def counted(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
