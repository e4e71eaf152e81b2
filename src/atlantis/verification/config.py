"""Which verifier grades, and within which limits."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from atlantis.verification.claims import Verifier
from atlantis.verification.extraction import Extraction
from atlantis.verification.functions import FunctionVerifier
from atlantis.verification.labels import LabelVerifier
from atlantis.verification.maths import SymbolicVerifier, ToleranceVerifier

_MOST_WORKERS = 4
_LIMITS = frozenset({"deadline_seconds", "memory_gib", "num_workers"})


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @property
    def settings(self) -> dict[str, Any]:
        """What may decide a verdict, for fingerprints: everything but ``num_workers``."""
        return self.model_dump(mode="json", exclude={"num_workers"})


class _Limits(_Config):
    deadline_seconds: PositiveFloat = 10.0
    """A claim that takes longer is a ``timeout``. Its worker process is replaced."""

    memory_gib: PositiveFloat | None = 2.0
    """Address space of a worker process; None sets no limit. What runs into it is an ``error``.
    A function that imports torch needs more than the default."""

    num_workers: PositiveInt | None = None
    """Worker processes; None for one per core, at most 4. Makes no difference to the verdicts."""

    @property
    def memory_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.memory_gib is None else int(self.memory_gib * 2**30)

    def workers(self) -> int:
        """How many workers there will be."""
        return self.num_workers or min(_MOST_WORKERS, len(os.sched_getaffinity(0)))


class MathsConfig(_Limits):
    """Answers to maths problems."""

    kind: Literal["maths"] = "maths"

    grader: Literal["math_verify", "relative_tolerance"] = "math_verify"
    """``math_verify`` is symbolic equality (needs ``atlantis-sft[math]``);
    ``relative_tolerance`` compares numbers within 1e-4, also as percent, and else spellings."""

    extraction: Extraction = "stated"
    """Where an answer may stand: in the last box (``boxed``), or where there is none, after
    ``####`` or "the answer is" too (``stated``), or anywhere (``last_expression``). Only a box
    counts in a truncated completion."""

    @model_validator(mode="after")
    def _limits_have_effect(self) -> Self:
        fields = type(self).model_fields
        given = sorted(name for name in _LIMITS if getattr(self, name) != fields[name].default)
        if self.grader == "relative_tolerance" and given:
            raise ValueError(f"{', '.join(given)} has no effect on grader relative_tolerance")
        return self


class LabelConfig(_Config):
    """The completion has to spell the gold label."""

    kind: Literal["label"] = "label"

    place: Literal["whole", "end"] = "whole"
    """The completion is the label, or reasons and ends with it."""


class FunctionConfig(_Limits):
    """A function of the user's own."""

    kind: Literal["function"] = "function"

    function: str = Field(pattern=r"^\w+(\.\w+)*:\w+(\.\w+)*$")
    """``module:function``, importable from the folder of the command; it is called with
    ``prompt``, ``completion`` and ``gold`` and returns True, False or None for no answer."""


VerifierConfig = Annotated[MathsConfig | LabelConfig | FunctionConfig, Field(discriminator="kind")]
"""The settings of one verifier, told apart by ``kind``."""


def open_verifier(
    config: MathsConfig | LabelConfig | FunctionConfig,
) -> Verifier:
    """The verifier, to be entered; entering starts its first worker.

    Raises:
        ConfigError: Here or on entering: a library is missing, or a function cannot be imported.
    """
    match config:
        case LabelConfig():
            return LabelVerifier(config.place)
        case FunctionConfig():
            return FunctionVerifier(
                config.function,
                deadline_seconds=config.deadline_seconds,
                memory_bytes=config.memory_bytes,
                num_workers=config.workers(),
            )
        case MathsConfig(grader="relative_tolerance"):
            return ToleranceVerifier(config.extraction)
        case MathsConfig():
            return SymbolicVerifier(
                extraction=config.extraction,
                deadline_seconds=config.deadline_seconds,
                memory_bytes=config.memory_bytes,
                num_workers=config.workers(),
            )
