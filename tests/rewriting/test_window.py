"""What becomes of a row, by what the policy says at the plain prompt and at the guided one."""

import pytest

from atlantis.data.demonstrations import Demonstration
from atlantis.data.prompts import Prompt
from atlantis.generation.requests import Completion
from atlantis.records import Conversation
from atlantis.rewriting.config import RewritingConfig
from atlantis.rewriting.likelihood import LogProbability
from atlantis.rewriting.window import Rewriter
from atlantis.verification.claims import Verdict

EXPERT_TEXT = " First take seven and then add eight to it which makes fifteen. #15"


class EndsWithGold:
    """Right is what ends with ``#`` and the answer."""

    name = "ends with gold"

    def verify(self, claims):
        self.claims = list(claims)
        return [self._verdict(claim) for claim in claims]

    def _verdict(self, claim):
        if "boom" in claim.completion:
            return Verdict("error", None, f"example {claim.example_id!r}: boom")
        answer = claim.completion.rpartition("#")[2]
        return Verdict("correct" if answer == claim.gold else "wrong", answer, None)


class Policy:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self, self_texts=(), guided_texts=(), reason="stop"):
        self.texts = {"self": list(self_texts), "guided": list(guided_texts)}
        self.asked = {"self": [], "guided": []}
        self.reason = reason

    def __call__(self, stage, requests):
        self.asked[stage] += requests
        return [
            Completion(self.texts[stage][r.attempt], len(self.texts[stage][r.attempt]), self.reason)
            for r in requests
        ]


def row(prompt="What is 7 + 8?", answer="15"):
    content = prompt
    if isinstance(prompt, list):
        content = Conversation("r", tuple(prompt), ())
    return Demonstration(Prompt("r", content), EXPERT_TEXT, answer)


def rewritten(policy, rows=None, score=None, **changes):
    settings = {"self_attempts": 2, "guided_attempts": 2} | changes
    config = RewritingConfig(**settings)
    rewriter = Rewriter(config, policy, EndsWithGold(), score, "tiny")
    return rewriter(rows or [row()])


def test_what_the_policy_solves_by_itself_is_kept():
    policy = Policy(["7 + 8 = 14 #14", "7 + 8 = 15 #15"])
    (made,) = rewritten(policy)
    assert (made["source"], made["completion"], made["attempt"]) == ("self", "7 + 8 = 15 #15", 1)
    assert (made["self_tried"], made["self_correct"], made["guided_tried"]) == (2, 1, 0)
    assert made["statuses"] == {"correct": 1, "wrong": 1}
    assert not policy.asked["guided"]


def test_what_it_solves_with_the_solution_in_view_is_stored_at_the_plain_prompt():
    policy = Policy(["#1", "#2"], ["#3", "it is 15 #15"])
    (made,) = rewritten(policy)
    assert (made["source"], made["completion"]) == ("guided", "it is 15 #15")
    assert made["prompt"] == "What is 7 + 8?"
    (asked, _) = policy.asked["guided"]
    assert EXPERT_TEXT.strip() in asked.prompt.content
    assert asked.prompt.content.endswith("What is 7 + 8?")


def test_what_stays_unsolved_is_the_experts():
    (made,) = rewritten(Policy(["#1", "#2"], ["#3", "#4"]))
    assert (made["source"], made["completion"]) == ("expert", EXPERT_TEXT)
    assert (made["self_tried"], made["guided_tried"], made["guided_correct"]) == (2, 2, 0)


def test_or_it_is_dropped():
    (made,) = rewritten(Policy(["#1", "#2"], ["#3", "#4"]), fallback="drop")
    assert made["source"] == "dropped"


@pytest.mark.parametrize(
    ("text", "reason", "why"),
    [
        ("7 + 8 = 15 #15", "length", "truncated"),
        ("As the notes say, 15 #15", "stop", "leak"),
        (EXPERT_TEXT, "stop", "copy"),
        (EXPERT_TEXT.upper(), "stop", "copy"),
    ],
)
def test_right_but_not_to_be_learnt(text, reason, why):
    policy = Policy(["#1", "#2"], [text, text], reason)
    (made,) = rewritten(policy)
    assert made["source"] == "expert"
    assert made["refused"] == {why: 2}


def test_what_the_policy_says_unaided_is_neither_leak_nor_copy():
    (made,) = rewritten(Policy([EXPERT_TEXT, "#1"]))
    assert made["source"] == "self"


def test_a_verifier_in_trouble_is_named_and_counts_as_unsolved():
    (made,) = rewritten(Policy(["boom #15", "boom #15"], ["boom", "#15"]))
    assert made["source"] == "guided"
    assert [error["stage"] for error in made["verifier_errors"]] == ["self", "self", "guided"]
    assert "'r': boom" in made["verifier_errors"][0]["detail"]


CANDIDATES = ["long way to 15 #15", "short #15", "no #1", "middle one #15"]


def by_letter_m(rows):
    return [LogProbability(float(r.completion.count("m")), len(r.completion)) for r in rows]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("first", CANDIDATES[0]), ("shortest", "short #15"), ("most_likely", "middle one #15")],
)
def test_which_of_several_right_ones_is_kept(rule, kept):
    (made,) = rewritten(Policy(CANDIDATES), score=by_letter_m, select=rule, self_attempts=4)
    assert made["completion"] == kept


def test_random_is_the_same_every_time_and_not_the_same_for_every_row():
    rows = [Demonstration(Prompt(f"r{i}", "What?"), EXPERT_TEXT, "15") for i in range(64)]
    first, again = (
        rewritten(Policy(CANDIDATES), rows, select="random", self_attempts=4) for _ in range(2)
    )
    assert first == again
    kept = [made["completion"] for made in first]
    assert {kept.count(text) > 10 for text in CANDIDATES if text.endswith("#15")} == {True}
    other = rewritten(Policy(CANDIDATES), rows, select="random", self_attempts=4, seed=1)
    assert [made["completion"] for made in other] != kept


def test_how_likely_both_completions_are_stands_in_the_row():
    (made,) = rewritten(Policy(["mmm #15", "#1"]), score=by_letter_m)
    assert (made["completion_logprob"], made["completion_tokens"]) == (3.0, 7)
    assert made["expert_tokens"] == len(EXPERT_TEXT)


def test_a_chat_stays_a_chat():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7 + 8?"}]
    policy = Policy(["#1", "#2"], [" it is 15 #15", "#4"])
    (made,) = rewritten(policy, [row(turns)])
    assert made["prompt"] == turns
    assert made["completion"] == [{"role": "assistant", "content": "it is 15 #15"}]
    guided = policy.asked["guided"][0].prompt.content.messages
    assert guided[0] == turns[0]
    assert EXPERT_TEXT.strip() in guided[1]["content"]
    assert EXPERT_TEXT.strip() not in str(made)
