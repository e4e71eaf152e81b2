"""A file of completions: whole or not at all, going on after a kill, from one set of inputs.

While it grows, finished requests stand in ``FILE.partial``. What the rows were made from is kept in
``FILE.manifest.json``.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from atlantis.data.prompts import Prompt, completed_fields
from atlantis.disk import digest_json, exclusive, write_json, write_text
from atlantis.generation.cache import CompletionCache, complete_all
from atlantis.generation.requests import Completion, Generator, requests_for
from atlantis.generation.sampling import SamplingConfig
from atlantis.progress import progress_bar
from atlantis.records import Conversation
from atlantis.store import begin, is_made

Alphas = Mapping[float | None, Generator]
"""A proxy-tuned model's generators by alpha; None is the only one of any other model."""


def complete_file(
    out: Path,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    generators: Alphas,
    *,
    fingerprint: Mapping[str, Any],
) -> bool:
    """Write a row for each completion, unless the same file is there already.

    Args:
        out: The file, JSONL; rows stand in the order of alphas, prompts and samples.
        prompts: What is completed.
        config: How completions are chosen.
        generators: Not touched where nothing is left to do.
        fingerprint: What else the completions depend on, JSON.

    Returns:
        Whether anything had to be done.

    Raises:
        StoreError: The file was made from something else, or by something else.
        ResumableError: Another process is making it, or a generator stopped.
        DataError: A prompt does not fit a model.
    """
    inputs = {
        **fingerprint,
        "alphas": list(generators),
        "prompts": digest_json([_identity(prompt) for prompt in prompts]),
        "sampling": config.model_dump(),
    }
    manifest = out.with_name(f"{out.name}.manifest.json")
    unfinished = out.with_name(f"{out.name}.partial")
    if is_made(out, manifest, inputs):
        shutil.rmtree(unfinished, ignore_errors=True)  # of a kill between the last two steps
        return False
    with exclusive(unfinished):
        begin(unfinished, inputs)
        lines = list(_lines(unfinished, prompts, config, generators))
        write_json(manifest, {"fingerprint": inputs})
        write_text(out, "".join(f"{line}\n" for line in lines))
        shutil.rmtree(unfinished)
    return True


def _lines(
    folder: Path, prompts: Sequence[Prompt], config: SamplingConfig, generators: Alphas
) -> Iterator[str]:
    requests = requests_for(prompts, config)
    with progress_bar() as bar:
        task = bar.add_task("generate", total=len(requests) * len(generators))
        for place, (alpha, generator) in enumerate(generators.items()):
            found = complete_all(
                generator,
                requests,
                config,
                CompletionCache(folder / f"alpha-{place}"),
                advance=partial(bar.advance, task),
            )
            samples = [said for completions in found for said in completions]
            for number, said in enumerate(samples):
                row, sample = divmod(number, config.num_return_sequences)
                parts = [f"alpha={alpha:g}"] if len(generators) > 1 else []
                parts += [str(sample)] if config.num_return_sequences > 1 else []
                fields = _fields(prompts[row], sample, named(alpha, said), parts=parts)
                yield json.dumps(fields, ensure_ascii=False)


def named(alpha: float | None, said: Completion) -> dict[str, Any]:
    """A completion by name, with the alpha that it was made with."""
    return ({} if alpha is None else {"alpha": alpha}) | said._asdict()


def _fields(
    prompt: Prompt, sample: int, said: dict[str, Any], *, parts: Sequence[str]
) -> dict[str, Any]:
    """A row of the file, in the layout of its prompt; ``parts`` tell its id from the prompt's."""
    rest = {name: value for name, value in said.items() if name != "text"}
    return {
        "example_id": "/".join([prompt.example_id, *parts]),
        **completed_fields(prompt, said["text"]),
        "prompt_id": prompt.example_id,
        "sample": sample,
        **rest,
    }


def _identity(prompt: Prompt) -> list[Any]:
    content = prompt.content
    if isinstance(content, Conversation):
        return [prompt.example_id, list(content.messages), list(content.tools)]
    return [prompt.example_id, content]
