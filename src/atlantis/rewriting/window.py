"""Rewriting some rows: sample, verify, sample with the solution in view, verify, fall back."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from atlantis.data.demonstrations import Demonstration
from atlantis.data.prompts import Prompt, completed_fields
from atlantis.generation.requests import Completion, Request
from atlantis.records import Row
from atlantis.rewriting.config import RewritingConfig
from atlantis.rewriting.filters import LeakFilter, copied_share
from atlantis.rewriting.likelihood import LogProbability
from atlantis.rewriting.prompts import guided_prompt, plain_text
from atlantis.verification.claims import Claim, Verdict, Verifier
from atlantis.verification.config import LabelConfig

SELF, GUIDED, EXPERT, DROPPED = "self", "guided", "expert", "dropped"
"""Where a completion comes from; a dropped row is counted, but not in the result."""
_MOST_ERRORS = 3
"""Of one row that are written down."""

Sample = Callable[[str, Sequence[Request]], list[Completion | str]]
"""Completions of requests, in their order, or why a prompt cannot be completed; told which stage
they are for."""
Score = Callable[[Sequence[Row]], list[LogProbability | None]]


class Attempt(NamedTuple):
    """One sampled completion, and what is held against it."""

    number: int
    completion: Completion
    verdict: Verdict
    refusal: str | None
    """Why it is not kept though it is right: ``truncated``, ``empty``, ``leak``, ``copy``."""

    @property
    def may_be_kept(self) -> bool:
        """Whether it is right and nothing is held against it."""
        return self.verdict.status == "correct" and self.refusal is None


@dataclass
class _Tried:
    """What one stage did with a row."""

    attempts: list[Attempt] = field(default_factory=list[Attempt])
    unasked: str | None = None
    """Why the prompt could not be completed."""

    @property
    def kept(self) -> list[Attempt]:
        """Those that may be kept."""
        return [attempt for attempt in self.attempts if attempt.may_be_kept]

    @property
    def num_correct(self) -> int:
        """How many are right, whatever else is held against them."""
        return sum(attempt.verdict.status == "correct" for attempt in self.attempts)


@dataclass(frozen=True)
class Rewriter:
    """Rewrites rows, some at a time.

    Args:
        config: How.
        sample: Asks the policy.
        verifier: Tells right from wrong.
        score: The policy's own opinion; None where the back end cannot tell it.
        policy: The policy's name, for the rows.
    """

    config: RewritingConfig
    sample: Sample
    verifier: Verifier
    score: Score | None
    policy: str

    def __call__(self, rows: Sequence[Demonstration]) -> list[dict[str, Any]]:
        """What became of every row, in order. The prompt is always the plain one."""
        alone = self._tried(SELF, rows, range(len(rows)))
        unsolved = [place for place, tried in enumerate(alone) if not tried.kept]
        guided = self._tried(GUIDED, rows, unsolved)
        made = [
            self._record(row, {SELF: alone[place], GUIDED: guided[place]})
            for place, row in enumerate(rows)
        ]
        self._add_likelihoods(rows, made)
        return made

    def _tried(
        self, stage: str, rows: Sequence[Demonstration], places: Sequence[int]
    ) -> list[_Tried]:
        """The attempts at some of the rows; one result for every row."""
        is_guided = stage == GUIDED
        count = self.config.guided_attempts if is_guided else self.config.self_attempts
        prompts = {place: self._prompt(rows[place], is_guided=is_guided) for place in places}
        asked = [(place, number) for place in places for number in range(count)]
        found = [_Tried() for _ in rows]
        if not asked:
            return found
        said = self.sample(stage, [Request(prompts[place], number) for place, number in asked])
        answered: list[tuple[int, int, Completion]] = []
        for (place, number), completion in zip(asked, said, strict=True):
            if isinstance(completion, str):
                found[place].unasked = completion
            else:
                answered.append((place, number, completion))
        verdicts = self.verifier.verify([_claim(rows[i], made) for i, _, made in answered])
        for (place, number, completion), verdict in zip(answered, verdicts, strict=True):
            refusal = self._refusal(rows[place], completion, is_guided=is_guided)
            found[place].attempts.append(Attempt(number, completion, verdict, refusal))
        return found

    def _prompt(self, row: Demonstration, *, is_guided: bool) -> Prompt:
        return guided_prompt(row, self.config.guided_prompt) if is_guided else row.prompt

    def _refusal(
        self, row: Demonstration, completion: Completion, *, is_guided: bool
    ) -> str | None:
        if completion.finish_reason != "stop":
            return "truncated"
        if not completion.text.strip():
            return "empty"
        if not is_guided:
            return None
        if self._leaks.leak(completion.text, plain_text(row.prompt)):
            return "leak"
        if self._is_label:
            return None
        size, most = self.config.copy_ngram, self.config.max_copied
        if copied_share(completion.text, row.expert, size=size) > most:
            return "copy"
        return None

    def _chosen(
        self, row: Demonstration, stages: Mapping[str, _Tried]
    ) -> tuple[str, Attempt | None]:
        for stage, tried in stages.items():
            if candidates := tried.kept:
                return stage, self._best(row, candidates)
        return (EXPERT if self.config.fallback == "expert" else DROPPED), None

    @cached_property
    def _leaks(self) -> LeakFilter:
        return LeakFilter(self.config.leaks)

    @property
    def _is_label(self) -> bool:
        """Whether a right completion has to be the expert's, word for word."""
        verifier = self.config.verifier
        return isinstance(verifier, LabelConfig) and verifier.place == "whole"

    def _best(self, row: Demonstration, candidates: Sequence[Attempt]) -> Attempt:
        if self.config.select == "random":
            rng = np.random.default_rng([self.config.seed, _number(row.example_id)])
            return candidates[int(rng.integers(len(candidates)))]
        if self.config.select == "shortest":
            return min(candidates, key=lambda attempt: attempt.completion.num_tokens)
        if self.config.select == "most_likely" and len(candidates) > 1:
            assert self.score is not None  # refused before anything is sampled
            scores = self.score([row.completed(a.completion.text) for a in candidates])
            means = [-np.inf if found is None else found.per_token for found in scores]
            return candidates[int(np.argmax(means))]
        return candidates[0]

    def _record(self, row: Demonstration, stages: Mapping[str, _Tried]) -> dict[str, Any]:
        source, kept = self._chosen(row, stages)
        everything = [attempt for tried in stages.values() for attempt in tried.attempts]
        refused = Counter(
            attempt.refusal
            for attempt in everything
            if attempt.verdict.status == "correct" and attempt.refusal
        )
        errors = [
            {"stage": stage, "attempt": attempt.number, "detail": attempt.verdict.detail}
            for stage, tried in stages.items()
            for attempt in tried.attempts
            if attempt.verdict.status in ("error", "timeout")
        ]
        unasked = {stage: tried.unasked for stage, tried in stages.items() if tried.unasked}
        completion = row.expert if kept is None else kept.completion.text
        fields = {
            "example_id": row.example_id,
            **completed_fields(row.prompt, completion),
            "answer": row.answer,
            "source": source,
            "attempt": None if kept is None else kept.number,
            "finish_reason": None if kept is None else kept.completion.finish_reason,
            "verdict": None if kept is None else kept.verdict.answer,
            **{f"{stage}_tried": len(tried.attempts) for stage, tried in stages.items()},
            **{f"{stage}_correct": tried.num_correct for stage, tried in stages.items()},
            "statuses": dict(sorted(Counter(a.verdict.status for a in everything).items())),
            "refused": dict(sorted(refused.items())),
            "verifier": self.verifier.name,
            "policy": self.policy,
            "seed": self.config.seed,
        }
        fields |= {"unasked": unasked} if unasked else {}
        return fields | ({"verifier_errors": errors[:_MOST_ERRORS]} if errors else {})

    def _add_likelihoods(
        self, rows: Sequence[Demonstration], made: Sequence[dict[str, Any]]
    ) -> None:
        """The policy's log-probability of the expert's completion, and of the one that is kept."""
        if self.score is None:
            return
        experts = self.score([row.completed(row.expert) for row in rows])
        changed = [place for place, row in enumerate(made) if row["source"] in (SELF, GUIDED)]
        texts = [_completion_text(made[place]) for place in changed]
        again = self.score(
            [rows[place].completed(text) for place, text in zip(changed, texts, strict=True)]
        )
        after = dict(zip(changed, again, strict=True))
        for place, (fields, expert) in enumerate(zip(made, experts, strict=True)):
            for name, found in (("expert", expert), ("completion", after.get(place, expert))):
                fields[f"{name}_logprob"] = None if found is None else found.total
                fields[f"{name}_tokens"] = None if found is None else found.num_tokens


def _claim(row: Demonstration, made: Completion) -> Claim:
    prompt = plain_text(row.prompt)
    return Claim(row.example_id, prompt, row.answer or "", made.text, made.finish_reason)


def _completion_text(fields: dict[str, Any]) -> str:
    completion = fields["completion"]
    return completion if isinstance(completion, str) else completion[0]["content"]


def _number(text: str) -> int:
    """The same for the same text, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
