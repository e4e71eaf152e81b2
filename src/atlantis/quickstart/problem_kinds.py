"""The stories, numbers and phrasings of the word problems; all of them our own.

A story names its numbers in the order ``{a}``, ``{b}``, ``{c}``, ``{d}``. A step computes with
these and with the results of the steps before it, which are called x, y and z in turn.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True)
class Kind:
    """Problems that are solved by the same steps."""

    name: str
    level: Level
    """How hard it is: one step, two steps, or three steps or large numbers."""
    stories: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    """Least and largest value of every number."""
    own: tuple[str, ...]
    """The steps by which the model solves it."""
    expert: tuple[str, ...]
    """The steps by which the expert does: others, or in another order."""


KINDS: tuple[Kind, ...] = (
    Kind(
        "gain",
        "easy",
        (
            "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
            "There are {a} {things} on a shelf. {name} adds {b}. How many {things} are there?",
        ),
        ((5, 30), (2, 12)),
        ("a + b",),
        ("b + a",),
    ),
    Kind(
        "loss",
        "easy",
        (
            "{name} has {a} {things} and gives away {b}. How many {things} does {name} have now?",
            "There are {a} {things} on a shelf. {name} takes {b}. How many {things} are left?",
        ),
        ((8, 30), (2, 12)),
        ("a - b",),
        ("a - b",),
    ),
    Kind(
        "groups",
        "easy",
        (
            "{name} has {a} bags with {b} {things} each. How many {things} does {name} have?",
            "There are {a} rows of {b} {things}. How many {things} does {name} see?",
        ),
        ((2, 9), (2, 9)),
        ("a * b",),
        ("b * a",),
    ),
    Kind(
        "gain_loss",
        "medium",
        (
            "{name} has {a} {things}, gets {b} more and gives away {c}. "
            "How many {things} does {name} have now?",
            "There are {a} {things} on a shelf. {name} adds {b}, then {other} takes {c}. "
            "How many {things} are left?",
        ),
        ((8, 25), (2, 12), (2, 9)),
        ("a + b", "x - c"),
        ("a - c", "x + b"),
    ),
    Kind(
        "groups_gain",
        "medium",
        (
            "{name} has {a} bags with {b} {things} each and {c} loose ones. "
            "How many {things} does {name} have?",
            "{name} buys {a} boxes of {b} {things} and finds {c} more. "
            "How many {things} is that together?",
        ),
        ((2, 6), (2, 9), (2, 12)),
        ("a * b", "x + c"),
        ("b * a", "c + x"),
    ),
    Kind(
        "comparison",
        "medium",
        (
            "{name} has {a} {things}. {other} has {b} more than {name}. "
            "How many {things} do they have together?",
            "{name} finds {a} {things}, and {other} finds {b} more than that. "
            "How many {things} do they find together?",
        ),
        ((3, 15), (2, 9)),
        ("a + b", "a + x"),
        ("2 * a", "x + b"),
    ),
    Kind(
        "three_heaps",
        "hard",
        (
            "{name} has {a} {things}, {other} has {b} and their friend has {c}. "
            "How many {things} do they have together?",
            "There are {a} {things} in a room, {b} in the hall and {c} in the yard. "
            "How many {things} does {name} see?",
        ),
        ((20, 60), (20, 60), (20, 60)),
        ("a + b", "x + c"),
        ("b + c", "a + x"),
    ),
    Kind(
        "two_groups",
        "hard",
        (
            "{name} has {a} bags with {b} {things} each and {c} boxes with {d} {things} each. "
            "How many {things} does {name} have?",
            "{name} sees {a} rows of {b} {things}, and {other} sees {c} rows of {d}. "
            "How many {things} do they see together?",
        ),
        ((2, 6), (2, 6), (2, 6), (2, 6)),
        ("a * b", "c * d", "x + y"),
        ("c * d", "a * b", "y + x"),
    ),
    Kind(
        "leftovers",
        "hard",
        (
            "There are {a} bags with {b} {things} each. {name} takes {c} from each bag. "
            "How many {things} are left?",
            "{name} has {a} boxes of {b} {things} and gives away {c} from each box. "
            "How many {things} does {name} have now?",
        ),
        ((3, 6), (5, 9), (2, 6)),
        ("b - c", "a * x"),
        ("a * b", "a * c", "x - y"),
    ),
    Kind(
        "purchase",
        "hard",
        (
            "{name} has {a} coins and buys {b} {things} for {c} coins each and a book for {d} "
            "coins. How many coins are left?",
            "{name} has {a} coins. {other} takes {b} {things} for {c} coins each and a lamp for "
            "{d}, and {name} pays. How many coins are left?",
        ),
        ((30, 60), (2, 6), (2, 6), (2, 9)),
        ("b * c", "x + d", "a - y"),
        ("c * b", "a - x", "y - d"),
    ),
)

OWN_OPENINGS = ("Count the {things}.", "Work it out.", "Go step by step.")
OWN_STEP = "{left} {sign} {right} = {result}."
OWN_LINKS = ("", "Then ", "Next ")
"""What may stand before a step that is not the first."""
OWN_CLOSINGS = (r"So it is \boxed{{{answer}}}.", r"That makes \boxed{{{answer}}}.")

EXPERT_OPENINGS = ("We seek the number of {things}.", "We determine how many {things} there are.")
EXPERT_STEPS = {
    "+": "the sum of {left} and {right} equals {result}",
    "-": "the difference of {left} and {right} equals {result}",
    "*": "the product of {left} and {right} equals {result}",
}
EXPERT_LINKS = ("First,", "second,", "third,")
EXPERT_CLOSINGS = (
    r"Hence, the required number is \boxed{{{answer}}}.",
    r"Consequently, the result equals \boxed{{{answer}}}.",
)

_NAMES = "Mara Tobin Yusuf Elke Priya Otto Lena Kofi Nuria Sven Amina Rafael Ingrid Dario Hana Milo"
_THINGS = "apples marbles stamps shells pencils buttons cards plums tickets stones candles beads"
NAMES: tuple[str, ...] = tuple(_NAMES.split())
THINGS: tuple[str, ...] = tuple(_THINGS.split())
