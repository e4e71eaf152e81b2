"""Completions from vLLM, in this process's own engine."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from atlantis.data.rendering import ChatTemplate
from atlantis.errors import ConfigError
from atlantis.generation.requests import Completion, Finished, Request
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.streams import short_seed
from atlantis.generation.transformers_generator import check_ids, completion_of, prompt_ids
from atlantis.models.vllm_engine import VllmEngine


class VllmGenerator:
    """Token ids go in and come out; rendering and decoding are those of transformers.

    Args:
        engine: The model.
        tokenizer: Its tokenizer.
        template: What turns chats into text.
        stops: Ids that end a completion.
        chunk_size: Requests that vLLM is given at a time; a kill loses at most so many. More keep
            an accelerator busier at the end of each chunk.
    """

    def __init__(
        self,
        engine: VllmEngine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: ChatTemplate,
        stops: Sequence[int],
        chunk_size: int = 512,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self._stops = list(stops)
        self._chunk_size = chunk_size

    def check(self, requests: Sequence[Request], config: SamplingConfig) -> None:
        """Refuse prompts that the model cannot complete, before the first one is.

        Raises:
            DataError: One is too long for the model, has a token that the model does not know, or
                is a chat that the template refuses.
            ConfigError: Beams were asked for.
        """
        if config.num_beams > 1:
            raise ConfigError("no beam search with vLLM; use the transformers back end")
        limit, vocabulary = self._engine.max_length, self._engine.vocabulary
        for request in requests:
            ids = prompt_ids(request, self._tokenizer, self._template)
            check_ids(request, ids, config, limit=limit, vocabulary=vocabulary)

    def complete(self, requests: Sequence[Request], config: SamplingConfig) -> Iterator[Finished]:
        """A chunk at a time.

        Raises:
            ModelError: vLLM refuses a prompt.
            ResumableError: The engine stopped.
        """
        for start in range(0, len(requests), self._chunk_size):
            chunk = requests[start : start + self._chunk_size]
            rows = [prompt_ids(request, self._tokenizer, self._template) for request in chunk]
            outputs = self._engine.generate(rows, [self._fields(r, config) for r in chunk])
            yield [
                (start + place, [self._completion(output)]) for place, output in enumerate(outputs)
            ]

    def _fields(self, request: Request, config: SamplingConfig) -> dict[str, Any]:
        """Sampling parameters, of which none is left to the checkpoint."""
        fields = {
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "stop_token_ids": self._stops,
            "detokenize": False,
        }
        if not config.temperature:
            return fields
        seed = short_seed(config.seed, request.prompt.example_id, request.attempt)
        return fields | {"top_p": config.top_p, "seed": seed}

    def _completion(self, output: Any) -> Completion:
        (said,) = output.outputs
        given, new = list(output.prompt_token_ids), list(said.token_ids)
        return completion_of(given, new, self._stops, self._tokenizer)
