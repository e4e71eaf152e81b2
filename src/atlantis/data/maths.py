r"""Reader of maths problems with checkable answers, from JSONL.

Columns are found by their names, so that one reader serves MATH, MATH-500, Minerva, OlympiadBench,
AIME, AMC, GSM8K and files of the user's own.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from atlantis.data import files
from atlantis.data.columns import given_id
from atlantis.data.files import JsonObject
from atlantis.errors import DataError
from atlantis.verification.extraction import last_boxed

_PROBLEM = ("problem", "question", "prompt")
_ANSWER = ("answer", "final_answer", "gold")
_SOLUTION = ("solution", "rationale")
_ID = ("unique_id", "id", "idx")
_HASHES = "####"


@dataclass(frozen=True, slots=True)
class MathsProblem:
    """A problem, its right answer, and the expert's way there."""

    example_id: str
    problem: str
    answer: str
    """As the file has it, numbers as text; several that belong together are one text with commas
    between them."""
    solution: str | None
    """What an expert wrote, as the file has it, where there is one."""


class MathsProblems(NamedTuple):
    """What the reader returns."""

    rows: tuple[MathsProblem, ...]
    dropped: tuple[str, ...]
    """Places of rows left out because the solution, their only source of an answer, boxes none;
    MATH has one."""


def read_maths(path: Path) -> MathsProblems:
    r"""The problems of a JSONL file, in file order.

    * Problem: the column ``problem``, ``question`` or ``prompt``.
    * Answer: ``answer``, ``final_answer`` or ``gold``: text, a number (27.0 is ``27``) or a list of
      these, all of which are wanted; in the layout of GSM8K what follows ``####`` in it, and what
      stands before is the solution too; without such a column the last box of the solution.
    * Solution: ``solution`` or ``rationale``, text or a list whose first entry counts.
    * Id: ``example_id``, ``unique_id``, ``id`` or ``idx``, else a content hash. Ids of two files
      may be the same.

    Raises:
        DataError: The file is missing or empty, a row lacks a problem or an answer, or two rows
            have one id; the message names the row.
    """
    first: dict[str, str] = {}
    problems: list[MathsProblem] = []
    dropped: list[str] = []
    for where, row in files.read_json_lines(path):
        problem = _problem(row, where)
        if problem is None:
            dropped.append(f"{where}: nothing boxed in the solution")
            continue
        if problem.example_id in first:
            raise DataError(
                f"{where}: id {problem.example_id!r} already stands at "
                f"{first[problem.example_id]}; remove one row or give it an id of its own"
            )
        first[problem.example_id] = where
        problems.append(problem)
    if not problems:
        reason = f"{dropped[0]}, and so in {len(dropped)} rows" if dropped else f"{path}: no rows"
        raise DataError(f"{reason}; check the file")
    return MathsProblems(tuple(problems), tuple(dropped))


def _problem(row: JsonObject, where: str) -> MathsProblem | None:
    name = _present(row, _PROBLEM)
    if name is None:
        raise DataError(
            f"{where}: no problem (present: {files.column_names(row)}); name its column "
            f"{', '.join(_PROBLEM[:-1])} or {_PROBLEM[-1]}"
        )
    problem = files.text_column(row, name, where)
    answer, solution = _answer_and_solution(row, where)
    if answer is None:
        return None
    example_id = given_id(row, where) or _own_id(row, where) or files.content_id(problem, answer)
    return MathsProblem(example_id, problem, answer, solution)


def _answer_and_solution(row: JsonObject, where: str) -> tuple[str | None, str | None]:
    solution = _solution(row, where)
    name = _present(row, _ANSWER)
    if name is None:
        if solution is None:
            raise DataError(
                f"{where}: no answer (present: {files.column_names(row)}); name its column "
                f"{', '.join(_ANSWER[:-1])} or {_ANSWER[-1]}, or box it in a solution"
            )
        return (last_boxed(solution) or "").strip() or None, solution
    answer = _answer(row[name], f"{where}: {name}")
    if solution is None and _HASHES in answer:
        return files.as_text(answer.rpartition(_HASHES)[2].strip(), f"{where}: {name}"), answer
    return answer, solution


def _answer(value: object, where: str) -> str:
    if isinstance(value, list):
        answers = [_answer(part, where) for part in files.as_list(value, where)]
        if not answers:
            raise DataError(f"{where}: is an empty list; fill it in or remove the row")
        return ", ".join(answers)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise DataError(f"{where}: {value} is no finite number; correct it")
        return str(int(value)) if float(value).is_integer() else repr(value)
    return files.as_text(value, where)


def _solution(row: JsonObject, where: str) -> str | None:
    name = _present(row, _SOLUTION)
    if name is None:
        return None
    value = row[name]
    if isinstance(value, list):
        solutions = files.as_list(value, f"{where}: {name}")
        value = solutions[0] if solutions else None
    return None if value is None else files.as_text(value, f"{where}: {name}")


def _own_id(row: JsonObject, where: str) -> str | None:
    name = _present(row, _ID)
    if name is None:
        return None
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return files.text_column(row, name, where)


def _present(row: JsonObject, names: tuple[str, ...]) -> str | None:
    """The first of the names that is a column with something in it."""
    return next((name for name in names if row.get(name) is not None), None)
