"""Completions from a model in this process, in padded batches of prompts of like length.

Continuous batching of transformers 5.23 gives the same tokens, and takes ten times as long on a
CPU (64 prompts, 32 new tokens).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from atlantis.data.prompts import render_prompt
from atlantis.data.rendering import ChatTemplate
from atlantis.data.tokenization import end_of_turn_id
from atlantis.errors import ConfigError, DataError, ModelError
from atlantis.generation.decoding import PLAIN, prompt_inputs
from atlantis.generation.requests import Completion, Finished, Request
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.streams import TokenSampler, stream_seed
from atlantis.models.proxy_roles import length_limit, vocabulary_size

_CONTEXT = 8
"""Ids of the prompt that are decoded with a completion."""


class TransformersGenerator:
    """The model in this process, causal, proxy-tuned or encoder-decoder.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        template: What turns chats into text.
        batch_size: Requests at a time; halved where a GPU's memory is too small.
        streamer: Told every token of a single completion as it comes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: ChatTemplate,
        batch_size: int = 8,
        streamer: BaseStreamer | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self._batch_size = batch_size
        self._streamer = streamer
        self._stops = stop_ids(model.generation_config, tokenizer, template)

    def check(self, requests: Sequence[Request], config: SamplingConfig) -> None:
        """Refuse prompts that the model cannot complete, before the first one is.

        Raises:
            DataError: One is too long for the model, has a token that the model does not know, or
                is a chat that the template refuses.
        """
        fields: Any = self.model.config
        limit = None if fields.is_encoder_decoder else length_limit(fields)
        for request in requests:
            ids = prompt_ids(request, self.tokenizer, self.template)
            check_ids(request, ids, config, limit=limit, vocabulary=vocabulary_size(fields))

    def complete(self, requests: Sequence[Request], config: SamplingConfig) -> Iterator[Finished]:
        """A batch at a time, the longest prompts first: too small a memory shows at once."""
        ids = [prompt_ids(request, self.tokenizer, self.template) for request in requests]
        order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            pairs = [(requests[place], ids[place]) for place in batch]
            yield list(zip(batch, self._fitting(pairs, config), strict=True))

    def close(self) -> None:
        """Let the model go, whoever still holds this."""
        del self.model

    def _fitting(
        self, batch: Sequence[tuple[Request, list[int]]], config: SamplingConfig
    ) -> list[list[Completion]]:
        try:
            return self._generate(batch, config)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise ModelError(
                    f"example {batch[0][0].prompt.example_id!r}: the GPU's memory is too small for "
                    "its completion alone; lower max_new_tokens or spread the model with device_map"
                ) from None
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._fitting(batch[:half], config) + self._fitting(batch[half:], config)

    @torch.inference_mode()
    def _generate(
        self, batch: Sequence[tuple[Request, list[int]]], config: SamplingConfig
    ) -> list[list[Completion]]:
        num_given, inputs = prompt_inputs(self.model, self.tokenizer, [ids for _, ids in batch])
        choices: dict[str, Any] = {"num_beams": config.num_beams}
        if config.temperature:
            seeds = [
                stream_seed(config.seed, request.prompt.example_id, request.attempt)
                for request, _ in batch
            ]
            device = self.model.device
            sampler = TokenSampler(seeds, config, num_given=num_given, device=device)
            choices = {"logits_processor": [sampler]}
        generate: Any = self.model.generate
        count = config.num_completions
        output: Any = generate(
            **inputs,
            **PLAIN | choices,
            max_new_tokens=config.max_new_tokens,
            num_return_sequences=count,
            eos_token_id=self._stops or None,
            pad_token_id=self._stops[0] if self._stops else 0,
            streamer=self._streamer,
        )
        # An encoder's prompt is no text that the completion goes on from.
        encoded = bool(self.model.config.is_encoder_decoder)
        given = [[] if encoded else ids for _, ids in batch for _ in range(count)]
        found = [
            completion_of(ids, new, self._stops, self.tokenizer)
            for ids, new in zip(given, output[:, num_given:].tolist(), strict=True)
        ]
        return [found[start : start + count] for start in range(0, len(found), count)]


def prompt_ids(
    request: Request, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate
) -> list[int]:
    """The ids that a model reads.

    Raises:
        DataError: The template refuses the chat.
    """
    prompt = render_prompt(request.prompt, template)
    encode: Any = tokenizer
    return encode(prompt.text, add_special_tokens=not prompt.has_special_tokens)["input_ids"]


def check_ids(
    request: Request,
    ids: Sequence[int],
    config: SamplingConfig,
    *,
    limit: int | None,
    vocabulary: int,
) -> None:
    """Refuse ids that a model cannot read.

    Args:
        request: Whose ids they are.
        ids: Those of the prompt.
        config: Says how many follow.
        limit: Most tokens that the model has positions for.
        vocabulary: How many tokens the model knows.

    Raises:
        DataError: There is none, there are too many, or the model does not know one.
        ConfigError: No prompt leaves room for so many new ones.
    """
    if limit is not None and config.max_new_tokens >= limit:
        raise ConfigError(
            f"max_new_tokens {config.max_new_tokens:,}: with a prompt that is more than the "
            f"model's {limit:,} tokens; lower it"
        )
    where = f"example {request.prompt.example_id!r}"
    if not ids:
        raise DataError(f"{where}: the prompt has no token; fill it in")
    if limit is not None and len(ids) + config.max_new_tokens > limit:
        raise DataError(
            f"{where}: {len(ids):,} tokens and {config.max_new_tokens:,} new ones are more "
            f"than the model's {limit:,}; shorten the prompt or lower max_new_tokens"
        )
    if max(ids) >= vocabulary:
        raise DataError(
            f"{where}: the prompt has the token {max(ids)}, the model knows {vocabulary:,}; "
            "remove that special token"
        )


def completion_of(
    given: Sequence[int],
    new: Sequence[int],
    stops: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> Completion:
    """New ids up to the first that ends them, as the text that goes on from the prompt's ids."""
    end = next((i for i, token in enumerate(new) if token in stops), None)
    said = list(new) if end is None else list(new[: end + 1])
    # Some tokenizers leave out a blank where a text begins: it begins with the prompt.
    before = list(given[-_CONTEXT:])
    start = str(tokenizer.decode(before, skip_special_tokens=True))
    whole = str(tokenizer.decode(before + said, skip_special_tokens=True))
    text = whole.removeprefix(start)
    if not whole.startswith(start):
        text = str(tokenizer.decode(said, skip_special_tokens=True))
    return Completion(text, len(said), "length" if end is None else "stop")


def stop_ids(
    defaults: Any, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate
) -> list[int]:
    """What ends a completion, by model, tokenizer and template.

    The tokenizer's end of a sequence, all that the model's own defaults name, and what the template
    puts behind an answer, which tuning teaches.
    """
    own: Any = getattr(defaults, "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    given: Any = tokenizer.eos_token_id
    taught = end_of_turn_id(tokenizer, template)
    return sorted({int(token) for token in [*named, given, taught] if token is not None})
