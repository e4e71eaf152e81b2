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


def test_an_empty_box_does_not_count_where_another_is_filled():
    assert extract_answer(r"\boxed{7}\boxed{}") == "7"
    assert extract_answer(r"\boxed{3} or \boxed{ }") == "3"
    assert extract_answer(r"The answer is 3. \boxed{ }") is None


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
    ("statement", "answer"),
    [
        # A number with more behind it is not the answer: all of the sentence is.
        ("2x+3.", "2x+3"),
        (r"3\sqrt{2}.", r"3\sqrt{2}"),
        ("10^5.", "10^5"),
        ("1 1/2 cups.", "1 1/2"),
        (r"2\pi", r"2\pi"),
        ("2 pi.", "2 pi"),
        ("7(x+1).", "7(x+1)"),
        ("7 (x+1).", "7 (x+1)"),
        ("12 and 15.", "12 and 15"),
        ("12, 15", "12, 15"),
        ("18, 19 or 20.", "18, 19 or 20"),
        ("3, x", "3, x"),
        ("3; 4", "3; 4"),
        ("(3, 5)", "(3, 5)"),
        ("5:30.", "5:30"),
        ("20-25", "20-25"),
        ("3 to 1", "3 to 1"),
        ("3 out of 5", "3 out of 5"),
        ("5 million.", "5 million"),
        ("5 feet 6 inches", "5 feet 6 inches"),
        ("2 dollars and 50 cents", "2 dollars and 50 cents"),
        ("5 and a half hours", "5 and a half hours"),
        ("2 to the 5th", "2 to the 5th"),
        ("2**10", "2**10"),
        ("$3$ or $4$.", "$3$ or $4$"),
        ("$3$, $4$", "$3$, $4$"),
        ("$18 and $20.", "$18 and $20"),
        ("2x+3, because it is linear", "2x+3"),
        # A sum is worth what stands behind its last equals sign.
        ("5 + 3 = 8.", "8"),
        ("5 + 3 = 8 apples", "8"),
        ("5! = 120.", "120"),
        (r"$5 \cdot 3 = 15$.", "15"),
        ("x = 15", "x = 15"),
        ("1 <= x", "1 <= x"),
        # What may stand behind a number.
        ("18, because he ate.", "18"),
        ("18, and that is 3 more", "18"),
        ("1,800, as shown", "1,800"),
        ("18 dollars per day!", "18"),
        ("18 apples, because 3*6 = 18", "18"),
        ("18 times", "18"),
        ("5 cm^2", "5"),
        ("18 m.", "18"),
        ("18cm", "18"),
        ("18 %", "18 %"),
        ("18 (since 3*6 is that)", "18"),
        ("**18.** Well", "18"),
        ("**18** apples", "18"),
        ("3,5", "3,5"),
        ("4!", "4"),
        ("$18$ square units", "18"),
        ("therefore 18", "18"),
        (", thus, **18**.", "18"),
        ("approximately 18.", "18"),
        ("-18.", "-18"),
        # On the next line.
        ("\n18", "18"),
        (":\n\n$18$", "18"),
        (":\n\\[18\\]", "18"),
        (":\n$$\n18\n$$\nas was shown", "18"),
        (":\nx + 1\nwhich is it", "x + 1"),
    ],
)
def test_a_number_stands_for_a_statement_only_if_nothing_else_belongs_to_it(statement, answer):
    assert extract_answer("The answer is " + statement) == answer


@pytest.mark.parametrize(
    "text",
    [
        "**Answer:**\n18",
        "**Answer**: 18",
        "### Final Answer:\n\n$18$",
        "The answer is 18. Check the answer: 3*6 = 17, no, right.",
        "#### Answer\nThe answer is 18.",
        "The answer is 18, she said.\n#### 18 dollars",
        "This gives the answer: 18.",
    ],
)
def test_where_an_answer_is_stated(text):
    assert extract_answer(text) == "18"


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
    [
        r"\boxed{",
        "{",
        "}",
        "<think>",
        "</think>",
        "$",
        r"\[",
        r"\(",
        "answer is ",
        "####\n",
        "*",
        " ",
        "a",
        "a ",
        "1",
        "1,",
        "! ",
        "; ",
        ", ",
    ],
)
def test_no_text_takes_long_to_read(piece):
    began = time.perf_counter()
    for text in (piece * 20_000, "The answer is 1 " + piece * 20_000 + "="):
        extract_answer(text, extraction="last_expression")
    assert time.perf_counter() - began < 5.0
