"""Completions that lean on the expert's solution are told from those that do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlantis.rewriting.filters import LeakFilter, copied_share


@pytest.mark.parametrize(
    "text",
    [
        "As the notes say, 3 + 4 = 7.",
        "According to the solution, we add.",
        "The teacher's explanation starts with 3.",
        "Following the provided solution, x = 2.",
        "We use the SOLUTION ABOVE.",
        "the reference solution has it",
        "As shown in the notes, the sum is 7.",
        "Here the teacher's method helps.",
        "As the expert shows, 7 is odd.",
        "as explained in the reference solution, 7",
    ],
)
def test_words_about_the_solution_are_found(text):
    assert LeakFilter().leak(text, "What is 3 + 4?")


@pytest.mark.parametrize(
    "text",
    [
        "The teacher has 3 apples and gets 4 more. That makes 7.",
        "The solution of the equation is x = 2.",
        "She notes that 7 is odd. So the answer is 7.",
        "We are given that x = 3, so the solution set is {3}.",
        "There are 3 litres of acid in the solution, so 7 litres from the solution are left.",
    ],
)
def test_a_plain_answer_is_no_leak(text):
    assert LeakFilter().leak(text, "What is it?") is None


def test_words_that_the_task_has_itself_are_no_leak():
    task = "Ann reads the notes for 3 hours and sleeps for 4. How many hours?"
    assert LeakFilter().leak("She reads the notes for 3 hours: 7 in all.", task) is None
    assert LeakFilter().leak("She reads the notes. The given solution says 7.", task)


def test_own_patterns_count_too():
    assert LeakFilter().leak("Herr Lehrer meint 7.", "?") is None
    assert LeakFilter([r"herr lehrer"]).leak("Herr Lehrer meint 7.", "?") == "Herr Lehrer"


def naive_share(said, shown, size):
    if len(said) < size:
        return float(said == shown)
    runs = [said[i : i + size] for i in range(len(said) - size + 1)]
    found = [any(shown[j : j + size] == run for j in range(len(shown))) for run in runs]
    return sum(found) / len(found)


words = st.lists(st.sampled_from(["a", "b", "c", "add", "both"]), min_size=1, max_size=12)


@given(words, words, st.integers(1, 5))
def test_the_copied_share_is_that_of_a_naive_count(said, shown, size):
    assert copied_share(" ".join(said), " ".join(shown), size=size) == naive_share(
        said, shown, size
    )


def test_nothing_said_is_nothing_copied():
    assert copied_share("", "we add both", size=2) == 0.0
    assert copied_share("we add both", "", size=2) == 0.0
    assert copied_share("We add BOTH.", "then we add both of them", size=3) == 1.0


def test_a_short_answer_is_a_copy_of_the_same_short_answer_only():
    assert copied_share("Other.", "Other.", size=8) == 1.0
    assert copied_share("15", "7 + 8 = 15", size=8) == 0.0


@pytest.mark.parametrize(
    "formula", [r"$\frac{a}{b} = \sqrt{x}$", r"\[a + b\]", "3 + 4 = 7", "$$x$$"]
)
def test_formulas_are_nobodys_words(formula):
    said = f"Put them together now {formula} and that is all {formula} there is to it"
    shown = f"First one adds {formula} to the other number {formula} which ends the task"
    assert copied_share(said, shown, size=2) == 0.0
