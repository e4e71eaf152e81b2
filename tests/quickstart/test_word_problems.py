"""The word problems are right, distinct and deterministic, and solved in two ways of speaking."""

import math
import operator
import random
import re
from collections import Counter

import pytest

from atlantis.quickstart.pretraining import build_tokenizer
from atlantis.quickstart.problem_kinds import KINDS
from atlantis.quickstart.word_problems import Mix, distinct_problems, expert_sum, own_sum

ANSWERS = {
    "gain": lambda a, b: a + b,
    "loss": lambda a, b: a - b,
    "groups": lambda a, b: a * b,
    "gain_loss": lambda a, b, c: a + b - c,
    "groups_gain": lambda a, b, c: a * b + c,
    "comparison": lambda a, b: a + a + b,
    "three_heaps": lambda a, b, c: a + b + c,
    "two_groups": lambda a, b, c, d: a * b + c * d,
    "leftovers": lambda a, b, c: a * (b - c),
    "purchase": lambda a, b, c, d: a - b * c - d,
}
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "sum": operator.add,
    "difference": operator.sub,
    "product": operator.mul,
}
OWN_STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)\.")
EXPERT_STEP = re.compile(r"the (sum|difference|product) of (\d+) and (\d+) equals (\d+)")


def drawn(seed: int, size: int = 1000):
    return list(distinct_problems(random.Random(seed), size=size, mix=Mix(), seen=set()))


@pytest.fixture(scope="module")
def problems():
    return drawn(0)


def own_steps(text):
    return [(sign, int(x), int(y), int(z)) for x, sign, y, z in OWN_STEP.findall(text)]


def expert_steps(text):
    return [(word, int(x), int(y), int(z)) for word, x, y, z in EXPERT_STEP.findall(text)]


def test_the_answer_is_what_the_numbers_of_the_story_give(problems):
    assert set(ANSWERS) == {kind.name for kind in KINDS}
    for made in problems:
        numbers = map(int, re.findall(r"\d+", made.problem))
        assert made.answer == str(ANSWERS[made.kind](*numbers)), made


def test_every_step_of_both_solutions_is_right_and_the_last_one_gives_the_answer(problems):
    plans = {kind.name: kind for kind in KINDS}
    for made in problems:
        kind = plans[made.kind]
        both = ((own_steps(made.own), kind.own), (expert_steps(made.expert), kind.expert))
        for steps, plan in both:
            assert len(steps) == len(plan)
            assert all(OPERATIONS[sign](x, y) == z for sign, x, y, z in steps), made
            assert str(steps[-1][-1]) == made.answer


def test_a_solution_uses_only_numbers_of_the_story_and_of_earlier_steps(problems):
    for made in problems:
        for steps in (own_steps(made.own), expert_steps(made.expert)):
            known = {2, *map(int, re.findall(r"\d+", made.problem))}  # 2: "twice as many"
            for _, x, y, result in steps:
                assert {x, y} <= known, made
                known.add(result)


def test_both_solutions_begin_with_a_blank_and_end_with_the_boxed_answer(problems):
    for made in problems:
        for text in (made.own, made.expert):
            assert re.match(r" [A-Z]", text)
            assert text.endswith(rf"\boxed{{{made.answer}}}.")
            assert text.count("boxed") == 1
            assert "  " not in text


def test_the_two_ways_of_speaking_share_no_three_words_in_a_row(problems):
    def runs(texts):
        words = [re.findall(r"[a-z]+", text.lower()) for text in texts]
        return {run for one in words for run in zip(one, one[1:], one[2:], strict=False)}

    own, expert = (made.own for made in problems), (made.expert for made in problems)
    assert not runs(own) & runs(expert)


def test_no_problem_stands_twice_and_none_that_was_seen_comes_again(problems):
    seen = {made.problem for made in problems}
    assert len(seen) == len(problems)
    more = list(distinct_problems(random.Random(0), size=500, mix=Mix(), seen=seen))
    assert not {made.problem for made in problems} & {made.problem for made in more}
    assert len(seen) == 1500


def test_the_same_seed_draws_the_same_problems_and_another_seed_others(problems):
    assert drawn(0) == problems
    assert drawn(1) != problems


def test_kinds_come_as_often_as_the_mix_says():
    mix = Mix(easy=3, medium=2, hard=1)
    made = list(distinct_problems(random.Random(0), size=190, mix=mix, seen=set()))
    shares = {"easy": 3, "medium": 2, "hard": 1}
    assert Counter(one.kind for one in made) == {
        kind.name: 10 * shares[kind.level] for kind in KINDS
    }


def test_the_prompts_hold_the_problem_and_only_the_guided_one_the_solution(problems):
    made = problems[0]
    assert made.prompt == f"Problem: {made.problem}\nSolution:"
    assert made.guided_prompt == f"Notes:{made.expert}\n{made.prompt}"


def test_sums_without_a_story_are_right_and_written_as_in_the_solutions():
    rng = random.Random(0)
    for _ in range(200):
        text = own_sum(rng)
        [(sign, x, y, result)] = own_steps(text)
        assert text == f" {x} {sign} {y} = {result}."
        assert OPERATIONS[sign](x, y) == result
        text = expert_sum(rng)
        [(word, x, y, result)] = expert_steps(text)
        assert text.split(", ")[1] == f"the {word} of {x} and {y} equals {result}."
        assert OPERATIONS[word](x, y) == result


def test_tokens_are_words_and_single_digits_that_never_cross_the_end_of_a_prompt(problems):
    texts = [made.guided_prompt + made.own for made in problems]
    tokenizer = build_tokenizer(texts)
    for made in drawn(2, size=300):
        for prompt in (made.prompt, made.guided_prompt):
            for completion in (made.own, made.expert):
                whole = tokenizer(prompt + completion)["input_ids"]
                assert tokenizer.unk_token_id not in whole
                assert tokenizer.decode(whole) == prompt + completion
                parts = [*tokenizer(prompt)["input_ids"], *tokenizer(completion)["input_ids"]]
                assert whole == parts
                assert len(whole) < tokenizer.model_max_length
        assert max(len(tokenizer.tokenize(text)) for text in (made.own, made.expert)) < 64
    digits = [token for token in tokenizer.get_vocab() if any(map(str.isdigit, token))]
    assert all(re.fullmatch(r" ?\d", token) for token in digits)


def test_no_story_has_more_numbers_than_its_ranges():
    for kind in KINDS:
        for story in kind.stories:
            names = re.findall(r"\{([a-d])\}", story)
            assert names == list("abcd")[: len(kind.ranges)]
        assert math.prod(most - least + 1 for least, most in kind.ranges) >= 64
