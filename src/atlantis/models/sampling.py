"""Prompts to completions: greedily, sampled or by beam search, with why each one ended."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from atlantis.data.prompts import RenderedPrompt
from atlantis.errors import DataError
from atlantis.models.generation import PLAIN, prompt_inputs
from atlantis.models.proxy_roles import length_limit, vocabulary_size


class SamplingConfig(BaseModel):
    """How completions are chosen. A checkpoint's own defaults and penalties do not count."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_new_tokens: int = Field(256, ge=1)
    """Most tokens of a completion."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Samples from the most likely tokens that have this probability together."""
    num_beams: int = Field(1, ge=1)
    """Beam search for the most likely completion; 1 is none."""
    num_return_sequences: int = Field(1, ge=1)
    """Completions of each prompt."""
    seed: int = Field(0, ge=0)
    """Of the samples; each batch of prompts has its own stream."""

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


class Completion(NamedTuple):
    """What a model says after a prompt."""

    text: str
    """Without special tokens."""
    num_tokens: int
    """New tokens, the one that ends it among them."""
    finish_reason: str
    """``stop`` at an end token, ``length`` at ``max_new_tokens``."""


class Generator(Protocol):
    """Completes prompts under one model."""

    def check(self, prompts: Sequence[RenderedPrompt], config: SamplingConfig) -> None:
        """Refuse prompts that the model cannot complete, before the first one is.

        Raises:
            DataError: One is too long for the model.
        """
        ...

    def complete(
        self, prompts: Sequence[RenderedPrompt], config: SamplingConfig, *, seed: int
    ) -> list[list[Completion]]:
        """For each prompt its completions, the most likely first where beams were searched."""
        ...


class TransformersGenerator:
    """The model in this process, causal, proxy-tuned or encoder-decoder.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        streamer: Told every token of a single completion as it comes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        streamer: BaseStreamer | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._streamer = streamer
        self._stops = _stop_ids(model, tokenizer)

    def check(self, prompts: Sequence[RenderedPrompt], config: SamplingConfig) -> None:
        """Refuse prompts that the model cannot complete, before the first one is.

        Raises:
            DataError: One is too long for the model, or has a token that the model does not know.
        """
        fields: Any = self._model.config
        limit = None if fields.is_encoder_decoder else length_limit(fields)
        for prompt in prompts:
            where, ids = f"example {prompt.example_id!r}", self._ids(prompt)
            if not ids:
                raise DataError(f"{where}: the prompt has no token; fill it in")
            if limit is not None and len(ids) + config.max_new_tokens > limit:
                raise DataError(
                    f"{where}: {len(ids):,} tokens and {config.max_new_tokens:,} new ones are more "
                    f"than the model's {limit:,}; shorten the prompt or lower max_new_tokens"
                )
            if max(ids) >= (known := vocabulary_size(fields)):
                raise DataError(
                    f"{where}: the prompt has the token {max(ids)}, the model knows {known:,}; "
                    "remove that special token"
                )

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[RenderedPrompt], config: SamplingConfig, *, seed: int
    ) -> list[list[Completion]]:
        """For each prompt its completions, the most likely first where beams were searched."""
        ids = [self._ids(prompt) for prompt in prompts]
        num_given, inputs = prompt_inputs(self._model, self._tokenizer, ids)
        generate: Any = self._model.generate
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output: Any = generate(
                **inputs,
                **PLAIN | _choices(config),
                max_new_tokens=config.max_new_tokens,
                num_return_sequences=config.num_return_sequences,
                eos_token_id=self._stops or None,
                pad_token_id=self._stops[0] if self._stops else 0,
                streamer=self._streamer,
            )
        found = [self._completion(new) for new in output[:, num_given:].tolist()]
        count = config.num_return_sequences
        return [found[start : start + count] for start in range(0, len(found), count)]

    def _ids(self, prompt: RenderedPrompt) -> list[int]:
        encode: Any = self._tokenizer
        return encode(prompt.text, add_special_tokens=not prompt.has_special_tokens)["input_ids"]

    def _completion(self, new: list[int]) -> Completion:
        end = next((i for i, token in enumerate(new) if token in self._stops), None)
        said = new if end is None else new[: end + 1]
        text = str(self._tokenizer.decode(said, skip_special_tokens=True))
        return Completion(text, len(said), "length" if end is None else "stop")


def _choices(config: SamplingConfig) -> dict[str, Any]:
    if not config.temperature:
        return {"num_beams": config.num_beams}
    return {
        "do_sample": True,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": 0,
    }


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end of a sequence, and all that the model's own defaults name."""
    own: Any = getattr(model.generation_config, "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    given: Any = tokenizer.eos_token_id
    return sorted({int(token) for token in [*named, given] if token is not None})
