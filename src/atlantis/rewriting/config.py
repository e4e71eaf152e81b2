"""How data are rewritten."""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from atlantis.rewriting.prompts import GUIDED_PROMPT
from atlantis.validation import check_template
from atlantis.verification.config import MathsConfig, VerifierConfig

Selection = Literal["first", "random", "shortest", "most_likely"]


class RewritingConfig(BaseModel):
    """How many completions are sampled, which of them count, and which one is kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    verifier: VerifierConfig = MathsConfig()
    """What tells right completions from wrong ones."""
    self_attempts: int = Field(default=4, ge=0)
    """Completions sampled at the plain prompt (K of self-alignment); 0 leaves that stage out."""
    guided_attempts: int = Field(default=4, ge=0)
    """Completions sampled for what is unsolved, at a prompt that shows the expert's solution; 0
    leaves that stage out."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the first stage; 0 takes the most likely token, and one attempt."""
    guided_temperature: float = Field(default=1.0, ge=0)
    """Of the second."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the most likely tokens that have this probability together."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Most tokens of a completion; one that is cut off is never kept."""
    select: Selection = "first"
    """Which right completion is kept: the first, a random one, the one of fewest tokens, or the one
    with the highest mean log-probability per token after the plain prompt."""
    guided_prompt: str = GUIDED_PROMPT
    """What the model reads in the second stage: {prompt}, {solution} and, if wanted, {answer}. In a
    chat it takes the place of the last turn."""
    copy_ngram: int = Field(default=8, ge=1)
    """Words in a row that count as copied."""
    max_copied: float = Field(default=0.6, ge=0, le=1)
    """A guided completion with more than this share of its runs of words in the expert's solution
    is refused; 1 allows everything."""
    leaks: tuple[str, ...] = ()
    """Further regular expressions that betray the expert's solution in a guided completion."""
    fallback: Literal["expert", "drop"] = "expert"
    """What becomes of rows that stay unsolved: the expert's completion, or nothing."""
    seed: int = Field(default=0, ge=0)
    """Of the samples, and of the random choice among them."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the rows depend on, JSON."""
        return self.model_dump(mode="json") | {"verifier": self.verifier.settings}

    @field_validator("guided_prompt")
    @classmethod
    def _guided_prompt_can_be_filled(cls, template: str) -> str:
        fields = ("prompt", "solution", "answer")
        for required in fields[:2]:
            check_template(template, allowed=fields, required=required)
        return template

    @field_validator("leaks")
    @classmethod
    def _leaks_are_expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _attempts_can_differ(self) -> Self:
        if not self.self_attempts + self.guided_attempts:
            raise ValueError("self_attempts and guided_attempts are both 0: nothing is rewritten")
        for attempts, temperature in (
            ("self_attempts", "temperature"),
            ("guided_attempts", "guided_temperature"),
        ):
            if getattr(self, attempts) > 1 and not getattr(self, temperature):
                raise ValueError(
                    f"{temperature} 0 gives the same completion each time; use {attempts} 1"
                )
        return self
