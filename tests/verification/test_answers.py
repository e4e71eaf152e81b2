r"""Spellings of answers, and the numbers they are."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlantis.verification.answers import bare_latex, canonical, numeric_value, same_answer


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        ("$x^2$", "x^2"),
        (r"\(x\)", "x"),
        (r"\[x\]", "x"),
        ("$3$,$4$", "3 , 4"),
        (r"\$18", r"\$18"),
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("2.7778E-06", r"2.7778 \times 10^{-6}"),
        ("-1e+5", r"-1 \times 10^{5}"),
        (r"(1e3, 2e3)", r"(1 \times 10^{3}, 2 \times 10^{3})"),
        ("2e - 1", "2e - 1"),
        ("2e", "2e"),
        ("3e2x", "3e2x"),
        ("x1e5", "x1e5"),
        ("e^{2}", "e^{2}"),
        ("a\n b", "a b"),
        (r"\begin{pmatrix}1\\[2pt]2\end{pmatrix}", r"\begin{pmatrix}1\\[2pt]2\end{pmatrix}"),
    ],
)
def test_delimiters_go_and_e_notation_is_rewritten(answer, bare):
    assert bare_latex(answer) == bare


@pytest.mark.parametrize(
    "spellings",
    [
        ("0.5", r"\frac{1}{2}", r"\dfrac12", "1/2", "$0.50$", "50e-2", r"x = \tfrac{1}{2}", ".5"),
        ("1234", "1,234", r"1{,}234", r"1,\!234", "1234.0", r"\$1,234", "01234"),
        ("C", r"\text{C}", r"\text{(C)}", "(C)", r"\mathrm{C}"),
        ("73", r"\textbf{(073)}", "073"),
        ("90", r"90^\circ", r"90^{\circ}", "90°"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"4.5\times 10^{33}", "4.5e33", r"4.5 \cdot 10^{33}"),
        ("10", r"10\%", "10 %"),
        ("1000", "10^3", "10^{3}", "1e3"),
        (r"\text{Tuesday}", "Tuesday."),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"x \le 5", r"x\leq 5"),
        (r"x \ge 5", r"x\geq5"),
        (r"\sqrt{2}", r"\sqrt2", r"\sqrt 2"),
        ("4210_{5}", "4210_5"),
        ("x^{2}", "x^2"),
        (r"\frac{1}{x}", r"\frac1x", r"\frac1{x}", r"\frac{1}x"),
        ("1.5", r"1\frac12", r"1\frac{1}{2}", r"1 \frac{1}{2}", "1 1/2", r"\frac{3}{2}"),
        ("-1.5", r"-1\frac12", "-1 1/2", "−1.5"),
        ("5", r"5\text{ cm}", r"5\,\mathrm{cm}^2", r"5 \text{ dollars}.", r"5\ \mbox{m/s}"),
        (r"\sqrt{2}", r"\sqrt{2} \text{ inches}"),
        (r"16\pi", r"16\pi\text{ cm}^{2}"),
        (r"\emptyset", r"\varnothing"),
        ("10000", r"10,000\%", r"10{,}000 \text{ km}"),
    ],
)
def test_spellings_of_one_answer_are_one(spellings):
    assert len({canonical(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.333", "1/3"),
        ("(1,2)", "(2,1)"),
        ("(312,123,231)", "312123231"),
        ("(100,200),(300,400)", "100200300400"),
        ("x=1,y=2", "x=2,y=1"),
        ("-1", "1"),
        ("C", "c"),
        ("2.88e-19", "1.325e-27"),
        (r"\sqrt{2}", r"\sqrt{3}"),
        ("1 1/2", "11/2"),
        ("3", r"3 \text{ or more}"),
        ("3", r"3\text{ million}"),
        (r"3\text{ a.m.}", r"3\text{ p.m.}"),
        (r"x^2\text{ is odd}", "x^2"),
        (r"\text{June 20}", r"\text{June 20}\text{ at night}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\2\end{pmatrix}"),
        ("4210_{5}", "42105"),
    ],
)
def test_different_answers_stay_different(one, other):
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("x=5", "y=5", False),
        ("y=2x+3", "x=2x+3", False),
        ("x_1=5", "x_2=5", False),
        ("x=5", "5", True),
        ("5", "x=5", True),
        ("x=5", "x = 5.0", True),
        ("x_1=5", "x_{1}=5", True),
        ("B", r"\textbf{(B)}\ 12", True),
        ("B", r"\text{(B) } \frac{1}{2}", True),
        ("(B)", r"(B) 12", True),
        (r"\text{(B)}", r"\mathrm{(B)}~\text{Tuesday}", True),
        ("C", r"\textbf{(B)}\ 12", False),
        ("B", r"(B) + (C)", False),
        ("B", r"(B), (C)", False),
        ("B", r"\text{(B)} \text{ and (C)}", False),
        ("B", r"(B)^2", False),
        (r"\textbf{(B)}\ 12", "C", False),
    ],
)
def test_variables_and_letters_of_choices_are_compared_with_the_gold(gold, answer, same):
    assert same_answer(gold, answer) is same


@given(st.fractions())
def test_a_fraction_is_read_back_exactly(value):
    top, bottom = value.numerator, value.denominator
    assert numeric_value(rf"\frac{{{top}}}{{{bottom}}}") == value
    assert numeric_value(f"{top}/{bottom}") == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=5))
def test_a_decimal_is_read_back_exactly(value):
    assert numeric_value(f"{value:f}") == Fraction(value)


@pytest.mark.parametrize("text", ["x", r"\sqrt{2}", "1/0", r"\frac{1}{0}", "1e9999", "9" * 100_000])
def test_what_is_no_plain_number_is_none(text):
    assert numeric_value(text) is None


@given(st.text())
def test_any_text_has_a_spelling(text):
    assert isinstance(canonical(text), str)
    assert same_answer(text, text)


@pytest.mark.parametrize("piece", ["9", "1 ", "1,", r"\text{a", "}", "(", "_1", r"\frac1", "1e"])
def test_no_answer_takes_long_to_spell(piece):
    began = time.perf_counter()
    assert same_answer("1", piece * 20_000) is False
    assert time.perf_counter() - began < 5.0
