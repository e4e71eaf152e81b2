r"""Answers in completions: thinking parts, boxes, statements."""

import time

import pytest

from atlantis.verification.extraction import extract_answer, last_boxed, without_thinking


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{3} wait, no: \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),  # escaped braces are no braces
        (r"\boxed{\left\{x : x > 0\right\}}", r"\left\{x : x > 0\right\}"),
        (r"\boxed{\begin{pmatrix}1\\{2}\end{pmatrix}}", r"\begin{pmatrix}1\\{2}\end{pmatrix}"),
        (r"\boxed{3} and then \boxed{4", "3"),  # the last one is cut off
        (r"a } stray \boxed{5} { brace", "5"),
        (r"\boxed{\boxed{6}}", "6"),
        (r"\boxed{\text{as } \boxed{7} \text{ says}}", "7"),
        (r"\framebox{204} minutes", "204"),
        (r"\fbox{8}", "8"),
        (r"\boxed 9.", "9"),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        (r"\unboxed{3}", None),
        ("no box", None),
    ],
)
def test_the_last_balanced_box_counts(text, content):
    assert last_boxed(text) == content


def test_an_empty_last_box_is_no_answer():
    assert extract_answer(r"\boxed{3} or \boxed{ }") is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (r"<think>maybe \boxed{7}</think>It is \boxed{4}.", r"It is \boxed{4}."),
        ("begun in the prompt</think>4", "4"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>never ends", ""),
        ("<think>a</think>b<think>never ends", "b"),
        ("<thinking>a</thinking>b", "b"),
        ("none", "none"),
    ],
)
def test_the_thinking_part_is_left_out(text, rest):
    assert without_thinking(text) == rest


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has\n#### 18", "18"),
        ("#### 1,200 \n", "1,200"),
        (r"The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("The answer is 18.", "18"),
        ("**Answer:** 18 apples", "18"),
        ("Final answer: **3/4**", "3/4"),
        ("The answer is $12.50 per day.", "$12.50"),
        ("First, the answer is 3. Checking again, the answer is -4.", "-4"),
        ("The answer is Tuesday. That was hard.", "Tuesday"),
        (r"The answer is \(x^2\)", "x^2"),
        ("So x = 15 and y = 3", None),
        ("An answer isn't known", None),
        ("", None),
    ],
)
def test_a_stated_answer_counts_where_there_is_no_box(text, answer):
    assert extract_answer(text, extraction="stated") == answer
    assert extract_answer(text, extraction="boxed") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"hence $x=3$, so $y=\frac{1}{2}$ holds", r"y=\frac{1}{2}"),
        ("we need 12 eggs, that is 3 boxes", "3"),
        (r"\[ x^2 \] obviously", "x^2"),
        ("$$a+b$$", "a+b"),
        ("nothing", None),
    ],
)
def test_the_last_expression_counts_if_that_is_asked_for(text, answer):
    assert extract_answer(text, extraction="last_expression") == answer
    assert extract_answer(text, extraction="stated") is None


@pytest.mark.parametrize("extraction", ["boxed", "stated", "last_expression"])
def test_only_a_box_counts_in_a_completion_that_was_cut_off(extraction):
    half = "The answer is 15: we get $12+3=15$ and then"
    assert extract_answer(half, extraction=extraction, cut_off=True) is None
    assert extract_answer(half + r" \boxed{15} or", extraction=extraction, cut_off=True) == "15"


@pytest.mark.parametrize(
    "piece",
    [r"\boxed{", "{", "}", "<think>", "</think>", "$", r"\[", r"\(", "answer is ", "####\n"],
)
def test_no_text_takes_long_to_read(piece):
    began = time.perf_counter()
    extract_answer(piece * 20_000, extraction="last_expression")
    assert time.perf_counter() - began < 5.0
