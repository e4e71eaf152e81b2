"""The right answer of a row, where no column says it."""

from atlantis.data.demonstrations import Demonstration
from atlantis.errors import DataError
from atlantis.verification.config import LabelConfig, MathsConfig, VerifierConfig
from atlantis.verification.extraction import extract_answer


def gold_of(row: Demonstration, verifier: VerifierConfig) -> str | None:
    """The column's answer, or the one in the expert's completion.

    For maths that is what the expert's completion answers, for labels the whole of it; a function
    need not have one.

    Raises:
        DataError: The expert's completion of a maths problem has no answer; or a label is wanted at
            the end of a text, and no column says which.
    """
    if row.answer is not None:
        return row.answer
    match verifier:
        case LabelConfig(place="whole"):
            return row.expert.strip()
        case LabelConfig():
            raise DataError(
                f"example {row.example_id!r}: no column answer; a label at the end of a text needs "
                "one"
            )
        case MathsConfig():
            found = extract_answer(row.expert, extraction=verifier.extraction, cut_off=False)
            if found is None:
                raise DataError(
                    f"example {row.example_id!r}: no column answer, and no answer in the "
                    "completion; add the column, or put the answer into \\boxed{}"
                )
            return found
        case _:
            return None
