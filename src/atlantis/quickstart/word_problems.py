"""A seeded generator of arithmetic word problems, each solved in two ways of speaking.

The model's own way is terse and writes sums with signs; the expert's is formal, puts them in words
and takes other steps, or the same in another order.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from atlantis.quickstart import problem_kinds as phrasing
from atlantis.quickstart.problem_kinds import KINDS, Kind, Level

PROMPT = "Problem: {problem}\nSolution:"
GUIDED_PROMPT = "Notes: {solution}\n{prompt}"
"""How the expert's solution is shown; ``rewrite-demo`` says the same."""

_MOST = 250
"""No number on the way to an answer is larger."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How often the kinds of each level come, in relation to each other."""

    easy: int = 1
    medium: int = 1
    hard: int = 1

    def deck(self) -> list[Kind]:
        """Every kind as often as it comes."""
        copies: dict[Level, int] = {"easy": self.easy, "medium": self.medium, "hard": self.hard}
        return [kind for kind in KINDS for _ in range(copies[kind.level])]


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A problem, its answer, and a completion of its prompt in each of the two ways."""

    kind: str
    problem: str
    answer: str
    own: str
    expert: str

    @property
    def prompt(self) -> str:
        """What the model reads."""
        return PROMPT.format(problem=self.problem)

    @property
    def guided_prompt(self) -> str:
        """What it reads where it may look at the expert's solution."""
        return GUIDED_PROMPT.format(solution=self.expert.strip(), prompt=self.prompt)


@dataclass(frozen=True, slots=True)
class _Step:
    """One sum, difference or product."""

    left: int
    sign: str
    right: int
    result: int


def distinct_problems(
    rng: random.Random, *, size: int, mix: Mix, seen: set[str]
) -> Iterator[WordProblem]:
    """Yield `size` problems whose texts are not in `seen`, and add them to it.

    Every kind comes as often as `mix` says for its level, as evenly as `size` permits.
    """
    deck = mix.deck()
    drawn = [deck[i % len(deck)] for i in range(size)]
    rng.shuffle(drawn)
    for kind in drawn:
        made = _word_problem(rng, kind)
        while made.problem in seen:
            made = _word_problem(rng, kind)
        seen.add(made.problem)
        yield made


def own_sum(rng: random.Random) -> str:
    """One step of a random problem, as the model writes it: an exercise in arithmetic."""
    kind = rng.choice(KINDS)
    step = rng.choice(_steps(_numbers(rng, kind), kind.own))
    return f" {_own_clause(step)}"


def expert_sum(rng: random.Random) -> str:
    """One step of a random problem, as the expert writes it."""
    kind = rng.choice(KINDS)
    step = rng.choice(_steps(_numbers(rng, kind), kind.expert))
    return f" {rng.choice(phrasing.EXPERT_LINKS)} {_expert_clause(step)}."


def _word_problem(rng: random.Random, kind: Kind) -> WordProblem:
    numbers = _numbers(rng, kind)
    name, other = rng.sample(phrasing.NAMES, 2)
    things = rng.choice(phrasing.THINGS)
    story = rng.choice(kind.stories)
    own, expert = _steps(numbers, kind.own), _steps(numbers, kind.expert)
    counted = "coins" if "coins" in story else things
    return WordProblem(
        kind=kind.name,
        problem=story.format(name=name, other=other, things=things, **numbers),
        answer=str(own[-1].result),
        own=_own_solution(rng, own, things=counted),
        expert=_expert_solution(rng, expert, things=counted),
    )


def _numbers(rng: random.Random, kind: Kind) -> dict[str, int]:
    """Numbers by which neither way leads through anything below 1 or too large."""
    while True:
        drawn = {
            name: rng.randint(least, most)
            for name, (least, most) in zip("abcd", kind.ranges, strict=False)
        }
        steps = _steps(drawn, kind.own) + _steps(drawn, kind.expert)
        if all(1 <= step.result <= _MOST for step in steps):
            return drawn


def _steps(numbers: Mapping[str, int], plan: tuple[str, ...]) -> list[_Step]:
    known = dict(numbers)
    steps: list[_Step] = []
    for result_name, text in zip("xyz", plan, strict=False):
        left_name, sign, right_name = text.split()
        left, right = (
            known[name] if name in known else int(name) for name in (left_name, right_name)
        )
        result = {"+": left + right, "-": left - right, "*": left * right}[sign]
        known[result_name] = result
        steps.append(_Step(left, sign, right, result))
    return steps


def _own_clause(step: _Step) -> str:
    return phrasing.OWN_STEP.format(
        left=step.left, sign=step.sign, right=step.right, result=step.result
    )


def _expert_clause(step: _Step) -> str:
    return phrasing.EXPERT_STEPS[step.sign].format(
        left=step.left, right=step.right, result=step.result
    )


def _own_solution(rng: random.Random, steps: list[_Step], *, things: str) -> str:
    links = ["", *(rng.choice(phrasing.OWN_LINKS) for _ in steps[1:])]
    sentences = [
        rng.choice(phrasing.OWN_OPENINGS).format(things=things),
        *(f"{link}{_own_clause(step)}" for link, step in zip(links, steps, strict=True)),
        rng.choice(phrasing.OWN_CLOSINGS).format(answer=steps[-1].result),
    ]
    return " " + " ".join(sentences)


def _expert_solution(rng: random.Random, steps: list[_Step], *, things: str) -> str:
    linked = [
        f"{link} {_expert_clause(step)}"
        for link, step in zip(phrasing.EXPERT_LINKS, steps, strict=False)
    ]
    sentences = [
        rng.choice(phrasing.EXPERT_OPENINGS).format(things=things),
        f"{'; '.join(linked)}.",
        rng.choice(phrasing.EXPERT_CLOSINGS).format(answer=steps[-1].result),
    ]
    return " " + " ".join(sentences)
