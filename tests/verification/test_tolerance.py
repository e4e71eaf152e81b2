"""The grader relative_tolerance: its three rules."""

import pytest

from atlantis.verification.config import MathsConfig, open_verifier
from atlantis.verification.graders import within_relative_tolerance


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("4.5", "4.5001", True),
        ("4.5", "4.5004", True),  # 8.9e-5 of 4.5004
        ("4.5", "4.501", False),
        ("1/3", "0.33333", True),
        ("1/3", "0.333", False),
        ("10", "0.1", True),
        ("0.1", r"10\%", True),
        ("10", r"10\%", True),
        ("2.88e-19", r"2.88 \times 10^{-19}", True),
        ("2.88e-19", "1.325e-27", False),
        ("0", "1e-9", False),
        ("0", "0.0", True),
        ("1,3", "1.00001,3", True),
        ("1,3", "3,1", False),
        ("(1,2),(3,4)", "(1,2),(3,4)", True),
        ("(1,2)", "[1,2]", False),
        ("[1,2)", "[1,2)", True),
        (r"\sqrt{2}", "1.41421", False),  # no algebra here
        ("Tuesday", r"\text{Tuesday}", True),
        ("1/0", "1/0", True),
        ("x=5", "y=5", False),
        ("x=5", "5", True),
        ("x=(1,2)", "y=(1,2)", False),
        ("y=2x+3", "x=2x+3", False),
        ("B", r"\textbf{(B)}\ 12", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    ],
)
def test_the_definition(gold, answer, equal):
    assert within_relative_tolerance(gold, answer) is equal


def test_it_needs_no_processes_and_names_itself(boxed):
    with open_verifier(MathsConfig(grader="relative_tolerance")) as verifier:
        assert verifier.name == "relative_tolerance 1e-4, stated answers, v2"
        assert verifier.verify([boxed("4.5", "4.5001"), boxed("4.5", "5")]) == [
            ("correct", "4.5001", None),
            ("wrong", "5", None),
        ]
