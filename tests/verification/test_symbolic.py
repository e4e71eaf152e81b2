r"""The grader math_verify: the pitfalls of the library, one by one."""

import logging
import signal
import subprocess
import sys
import threading
import time

import pytest

from atlantis.errors import ConfigError, DataError
from atlantis.verification.claims import Verdict
from atlantis.verification.config import MathsConfig, open_verifier


def test_the_name_has_the_versions(symbolic):
    assert symbolic.name.startswith("math_verify 0.9.")
    assert "sympy 1." in symbolic.name


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        # Bare LaTeX golds, which the library alone reads as nothing.
        (r"\sqrt{2}", "2^{1/2}", "correct"),
        ("x^2+1", "1+x^2", "correct"),
        ("(1,2)", "( 1, 2 )", "correct"),
        ("[2,5)", r"\left[2, 5\right)", "correct"),
        ("C", r"\text{(C)}", "correct"),
        ("C", "D", "wrong"),
        # e-notation on either side; the library alone reads 4.5e33 as 4.5.
        ("4.5e33", r"4.5 \times 10^{33}", "correct"),
        (r"4.5 \cdot 10^{33}", "4.5e33", "correct"),
        ("4.5e33", "4.5", "wrong"),
        ("4.5e33", "4.5e32", "wrong"),
        # Near 0 the library alone rounds to 6 decimals.
        ("2.88e-19", "1.325e-27", "wrong"),
        ("2.88e-19", "0", "wrong"),
        ("2.88e-19", r"2.88 \times 10^{-19} \text{ J}", "correct"),
        # No relative tolerance: that is the other grader.
        ("1/3", "0.333", "wrong"),
        ("4.5", "4.5001", "wrong"),
        ("0.333333", r"\frac{1}{3}", "correct"),
        # Percent, as share or as number.
        ("10", r"10\%", "correct"),
        ("0.1", r"10\%", "correct"),
        (r"10\%", "0.1", "correct"),
        # A pair is an open interval too. Gold first: the comparison is not symmetric.
        (r"\{1,2\}", "1,2", "correct"),
        ("1<x<2", "(1,2)", "correct"),
        ("(1,2)", "1<x<2", "wrong"),
        # Sets and tuples.
        ("3,4", "4,3", "correct"),
        ("(3,4)", "(4,3)", "wrong"),
        ("$f(x)=x$,$f(x)=2-x$", "f(x)=2-x, f(x)=x", "correct"),
        (r"1\pm\sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}", "correct"),
        # Units, currency, degrees, thousands.
        ("5", r"5 \text{ cm}", "correct"),
        (r"\$18", "18.00", "correct"),
        ("10,080", r"10,\!080", "correct"),
        (r"90^\circ", "90", "correct"),
        ("x=5", "5", "correct"),
        ("025", "25", "correct"),
        (r"\frac{1}{2}", "0.5", "correct"),
        # Not the same variable.
        ("x=5", "y=5", "wrong"),
        ("y=2x+3", "x=2x+3", "wrong"),
        ("x=y", "y=x", "correct"),
        # The library alone reads 1 1/2 as 1.
        ("1.5", "1 1/2", "correct"),
        ("1", "1 1/2", "wrong"),
        ("11/2", "1 1/2", "wrong"),
        ("B", r"\textbf{(B)}\ 12", "correct"),
        (r"\emptyset", r"\varnothing", "correct"),
    ],
)
def test_pairs(symbolic, boxed, gold, answer, status):
    assert symbolic.verify([boxed(gold, answer)])[0].status == status


@pytest.mark.parametrize("grader", ["math_verify", "relative_tolerance"])
def test_a_part_of_a_stated_answer_is_not_the_answer(claim, grader):
    stated = {
        "2x+3": ["2", "3"],
        r"3\sqrt{2}": ["3", "2"],
        "10^5": ["10", "5"],
        "1 1/2 cups": ["1", "11/2", "1/2"],
        r"2\pi": ["2"],
        "7(x+1)": ["7"],
        "12 and 15": ["12", "15"],
        "5 + 3 = 8": ["5", "3"],
        "18, 19 or 20": ["18", "20"],
        "3 out of 5": ["3", "5"],
    }
    claims = [
        claim(gold, f"The answer is {said}.") for said, golds in stated.items() for gold in golds
    ]
    right = {"2x+3": "2x+3", "100000": "10^5", "1.5": "1 1/2 cups", "8": "5 + 3 = 8"}
    whole = [claim(gold, f"The answer is {said}.") for gold, said in right.items()]
    with open_verifier(MathsConfig(grader=grader)) as verifier:
        assert {verdict.status for verdict in verifier.verify(claims)} == {"wrong"}
        assert {verdict.status for verdict in verifier.verify(whole)} == {"correct"}


def test_several_boxes_are_not_merged(symbolic, claim):
    [verdict] = symbolic.verify([claim("4", r"\boxed{3} wait, no: \boxed{4}")])
    assert verdict == Verdict("correct", "4", None)
    [verdict] = symbolic.verify([claim("3,4", r"\boxed{3} wait, no: \boxed{4}")])
    assert verdict.status == "wrong"


def test_boxes_in_the_thinking_part_do_not_count(symbolic, claim):
    thought = claim("4", r"<think>\boxed{7}?</think>\boxed{4}")
    assert symbolic.verify([thought])[0].status == "correct"
    assert symbolic.verify([claim("7", r"<think>\boxed{7}")])[0].status == "no_answer"


def test_a_truncated_completion_is_right_only_if_boxed(symbolic, claim):
    half = "we get $12+3=15$ and then"
    verdicts = symbolic.verify(
        [
            claim("15", half, finish_reason="length"),
            claim("15", half + r" \boxed{15} since", finish_reason="length"),
            claim("15", half),
            claim("15", ""),
            claim("15", r"\boxed{...}"),
        ]
    )
    assert [verdict.status for verdict in verdicts] == [
        "truncated",
        "correct",
        "no_answer",
        "no_answer",
        "no_answer",
    ]


@pytest.mark.parametrize("gold", ["", " ", "$$", "{}", "..."])
def test_a_gold_that_parses_to_nothing_is_refused(symbolic, gold):
    with pytest.raises(DataError, match=r"example 'b': gold answer .* cannot be graded"):
        symbolic.check_golds({"a": "3", "b": gold})


def test_a_gold_that_is_no_text_is_refused(symbolic):
    with pytest.raises(DataError, match=r"example 'b': gold answer 27\.0 .* no text"):
        symbolic.check_golds({"a": "3", "b": 27.0})


def test_golds_that_parse_are_taken(symbolic):
    golds = ["27", "4.5e33", r"\emptyset", r"\text{Tuesday}", "C", "$3$,$4$", "x^2+1", r"17.5\%"]
    symbolic.check_golds({gold: gold for gold in golds})


HOSTILE = {
    "power": "10^{10^{10}}",
    "tower": "9^{9^{9^{9}}}",
    "factorial": "(10^{9})!",
    "brackets": "(" * 3000 + "1" + ")" * 3000,
    "expansion": "(1+x+y+z)^{300}",
    "sum": r"\sum_{k=1}^{10^9} \frac{1}{k^2}",
}


@pytest.mark.timeout(120)
def test_hostile_answers_cost_only_their_deadline(boxed):
    hostile = [boxed("5", answer, example_id=name) for name, answer in HOSTILE.items()]
    # The gold is small: these answers differ from it, so only "correct" would be a mistake.
    claims = [c for h in hostile for c in (h, boxed("1/2", "0.5"), boxed("1/2", "0.6"))]
    config = MathsConfig(num_workers=2, deadline_seconds=3)
    with open_verifier(config) as verifier:
        began = time.monotonic()
        verdicts = verifier.verify(claims)
        took = time.monotonic() - began
    for place, name in enumerate(HOSTILE):
        verdict = verdicts[3 * place]
        assert verdict.status in ("timeout", "error", "wrong"), name
        if verdict.status != "wrong":
            assert f"example {name!r}" in verdict.detail
    assert verdicts[0].status == "timeout"
    assert "took longer than 3 s" in verdicts[0].detail
    assert [v.status for v in verdicts[1::3]] == ["correct"] * len(HOSTILE)
    assert [v.status for v in verdicts[2::3]] == ["wrong"] * len(HOSTILE)
    assert took < 60


def test_a_hanging_answer_that_is_repeated_costs_one_deadline(boxed):
    with open_verifier(MathsConfig(num_workers=1, deadline_seconds=2)) as verifier:
        began = time.monotonic()
        verdicts = verifier.verify(
            [boxed("5", HOSTILE["power"], example_id=str(i)) for i in range(8)]
        )
        assert time.monotonic() - began < 6
    assert {verdict.status for verdict in verdicts} == {"timeout"}
    assert "example '7'" in verdicts[7].detail


def test_an_answer_that_eats_memory_is_an_error(boxed):
    # Nested powers of a sum expand into millions of terms.
    config = MathsConfig(num_workers=1, deadline_seconds=60, memory_gib=0.25)
    with open_verifier(config) as verifier:
        eater = boxed("5", "(a+b+c+d+f+g+h)^{60}-(a+b+c+d+f+g+h)^{59}+1", example_id="eater")
        verdicts = verifier.verify([eater, boxed("1/2", "0.5")])
    assert verdicts[0].status == "error"
    assert "example 'eater': MemoryError: out of memory" in verdicts[0].detail
    assert verdicts[1].status == "correct"


def test_it_works_in_a_thread_and_leaves_alarms_alone(boxed):
    # The library's own time limits fail in threads and cancel the caller's alarm.
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 3.0)
        found = []

        def work():
            with open_verifier(MathsConfig(num_workers=1)) as verifier:
                found.extend(verifier.verify([boxed(r"\frac{1}{2}", "2^{-1}")]))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        time.sleep(max(0.0, signal.getitimer(signal.ITIMER_REAL)[0]) + 0.1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [verdict.status for verdict in found] == ["correct"]
    assert rang == [True]


def test_nothing_is_logged_or_printed(boxed, caplog, capfd):
    with (
        caplog.at_level(logging.DEBUG),
        open_verifier(MathsConfig(num_workers=1, deadline_seconds=2)) as verifier,
    ):
        verifier.verify([boxed("5", HOSTILE["power"]), boxed("5", r"\frac{")])
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_the_missing_library_is_one_clear_error():
    command = (
        "import sys\n"
        "sys.modules['math_verify'] = None\n"
        "from atlantis.errors import ConfigError\n"
        "from atlantis.verification.config import MathsConfig, open_verifier\n"
        "try: open_verifier(MathsConfig())\n"
        "except ConfigError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout
    assert said.count("\n") == 1
    assert "atlantis-sft[math]" in said


def test_the_order_and_the_verdicts_do_not_depend_on_the_number_of_workers(boxed):
    claims = [boxed(str(i % 7), f"{i % 5}+0") for i in range(60)]
    found = []
    for num_workers in (1, 3):
        with open_verifier(MathsConfig(num_workers=num_workers)) as verifier:
            found.append(verifier.verify(claims))
    assert found[0] == found[1]
    assert [v.status == "correct" for v in found[0]] == [i % 7 == i % 5 for i in range(60)]


def test_options_without_effect_are_refused():
    with pytest.raises(ValueError, match="deadline_seconds has no effect"):
        MathsConfig(grader="relative_tolerance", deadline_seconds=3)


def test_a_worker_that_cannot_start_is_a_config_error():
    with (
        pytest.raises(ConfigError, match="math_verify"),
        open_verifier(MathsConfig(memory_gib=0.05)),
    ):
        pass
