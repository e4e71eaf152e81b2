"""What completes prompts for ``atlantis generate``, and the rows of its result."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atlantis.cli.generated_file import Line
from atlantis.data.prompts import Prompt, RenderedPrompt, render_prompt
from atlantis.data.rendering import chat_template
from atlantis.disk import digest_json
from atlantis.models.loading import (
    fingerprint_model,
    is_encoder_decoder,
    load_model,
    load_tokenizer,
)
from atlantis.models.proxy import ProxyTunedLM
from atlantis.models.proxy_roles import check_roles
from atlantis.models.sampling import Completion, SamplingConfig, TransformersGenerator
from atlantis.models.settings import LoadingConfig
from atlantis.progress import progress_bar

_VERSION = 1
"""Of what the rows depend on in this file."""


@dataclass(frozen=True)
class Job:
    """What completes prompts, and how."""

    models: Mapping[str, str]
    """One model under the name ``model``, or the three of proxy-tuning."""
    alphas: tuple[float | None, ...]
    """None for one model."""
    sampling: SamplingConfig
    loading: LoadingConfig
    chat_template: str | None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tuned model's of three with one vocabulary: it has the template that it learnt."""
        return load_tokenizer(self.models.get("model") or self.models["reference"], self.loading)

    def check(self) -> None:
        """Refuse models that cannot be found or do not fit, before anything is loaded."""
        if "model" in self.models:
            is_encoder_decoder(self.models["model"], self.loading)
        else:
            check_roles(self.models, self.loading)

    def load(self) -> PreTrainedModel:
        """The model; `move` sets its alpha."""
        if "model" in self.models:
            return load_model(self.models["model"], self.loading)
        return ProxyTunedLM.from_pretrained(**self.models, **self.loading.model_dump())


@dataclass(frozen=True)
class FileJob:
    """The prompts of a file, in batches that do not depend on how far a run has come."""

    job: Job
    prompts: Sequence[Prompt]
    rendered: Sequence[RenderedPrompt]
    batches: Sequence[Sequence[int]]
    """Positions in ``prompts``."""

    @classmethod
    def plan(cls, job: Job, prompts: Sequence[Prompt], *, batch_size: int) -> Self:
        """Render all prompts and put those of like length together.

        Raises:
            DataError: The chat template refuses a chat.
        """
        template = chat_template(job.tokenizer(), job.chat_template)
        rendered = [render_prompt(prompt, template) for prompt in prompts]
        # The longest first: if the memory is too small, that shows at once.
        order = sorted(range(len(rendered)), key=lambda row: -len(rendered[row].text))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        return cls(job, prompts, rendered, batches)

    @property
    def num_units(self) -> int:
        """Every batch with every alpha."""
        return len(self.batches) * len(self.job.alphas)

    def fingerprint(self) -> dict[str, Any]:
        """All that completions depend on."""
        job = self.job
        return {
            "code": _VERSION,
            "alphas": list(job.alphas),
            "batch_size": len(self.batches[0]),
            "loading": job.loading.model_dump(),
            "models": {
                role: fingerprint_model(name, job.loading) for role, name in job.models.items()
            },
            "prompts": digest_json([list(prompt) for prompt in self.rendered]),
            "sampling": job.sampling.model_dump(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def lines(self, units: Sequence[int]) -> Iterator[list[Line]]:
        """The rows of each unit of work, one after the other.

        Raises:
            DataError: A prompt is too long for the model.
        """
        if not units:
            return
        job, model = self.job, self.job.load()
        generator = TransformersGenerator(model, job.tokenizer())
        generator.check(self.rendered, job.sampling)
        places = [divmod(unit, len(self.batches)) for unit in units]
        with progress_bar() as bar:
            total = sum(len(self.batches[batch]) for _, batch in places)
            task = bar.add_task("generate", total=total)
            for place, batch in places:
                move(model, job.alphas[place])
                rows = self.batches[batch]
                found = generator.complete(
                    [self.rendered[row] for row in rows],
                    job.sampling,
                    seed=_stream_seed(job.sampling.seed, batch),
                )
                bar.advance(task, len(rows))
                yield [
                    self._line(place, row, sample, said)
                    for row, completions in zip(rows, found, strict=True)
                    for sample, said in enumerate(completions)
                ]

    def _line(self, place: int, row: int, sample: int, said: Completion) -> Line:
        """A row of the result, in the layout of its prompt: text, or messages."""
        job, prompt = self.job, self.prompts[row]
        count, alpha = job.sampling.num_return_sequences, job.alphas[place]
        parts = [prompt.example_id]
        parts += [f"alpha={alpha:g}"] if len(job.alphas) > 1 else []
        parts += [str(sample)] if count > 1 else []
        named_parts = named(alpha, said)
        fields = {
            "example_id": "/".join(parts),
            **_prompt_and_completion(prompt, named_parts.pop("text")),
            "prompt_id": prompt.example_id,
            "sample": sample,
            **named_parts,
        }
        position = (place * len(self.prompts) + row) * count + sample
        return Line(position, json.dumps(fields, ensure_ascii=False))


def move(model: PreTrainedModel, alpha: float | None) -> None:
    """Set how far a proxy-tuned model is moved; nothing for any other."""
    if isinstance(model, ProxyTunedLM) and alpha is not None:
        model.alpha = alpha


def named(alpha: float | None, said: Completion) -> dict[str, Any]:
    """A completion by name, with the alpha that it was made with."""
    return ({} if alpha is None else {"alpha": alpha}) | said._asdict()


def _stream_seed(seed: int, batch: int) -> int:
    """A batch's own random numbers, so that a rerun need not repeat the batches before it."""
    return int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])


def _prompt_and_completion(prompt: Prompt, text: str) -> dict[str, Any]:
    if isinstance(prompt.content, str):
        return {"prompt": prompt.content, "completion": text}
    tools = {"tools": list(prompt.content.tools)} if prompt.content.tools else {}
    return {
        "prompt": list(prompt.content.messages),
        "completion": [{"role": "assistant", "content": text.strip()}],
        **tools,
    }
