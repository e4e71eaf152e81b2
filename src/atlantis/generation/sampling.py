"""How completions are chosen."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SamplingConfig(BaseModel):
    """How completions are chosen. A checkpoint's own defaults and penalties do not count."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of a completion."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the most likely tokens that have this probability together."""
    num_beams: int = Field(default=1, ge=1)
    """Beam search for the most likely completion; 1 is none."""
    num_return_sequences: int = Field(default=1, ge=1)
    """Completions of each prompt."""
    seed: int = Field(default=0, ge=0)
    """Of the samples; each example's every attempt has its own stream."""

    @model_validator(mode="after")
    def _has_no_option_without_effect(self) -> Self:
        if self.top_p < 1 and not self.temperature:
            raise ValueError(f"top_p {self.top_p} needs a temperature above 0")
        if self.temperature and self.num_beams > 1:
            raise ValueError("beam search does not sample; leave out temperature or num_beams")
        if self.num_return_sequences > self.num_beams and not self.temperature:
            raise ValueError(
                f"{self.num_return_sequences} completions would be the same; "
                "sample them with a temperature, or search with as many num_beams"
            )
        return self

    @property
    def num_attempts(self) -> int:
        """Requests for each prompt: samples are asked for one by one, beams together."""
        return self.num_return_sequences if self.temperature else 1

    @property
    def num_completions(self) -> int:
        """Completions of each request."""
        return 1 if self.temperature else self.num_return_sequences
