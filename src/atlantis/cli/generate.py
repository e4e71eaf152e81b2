"""``atlantis generate``: completions of one model, or of a large one that small ones move."""

from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import (
    Adapter,
    ApiKey,
    BaseUrl,
    BatchSize,
    ChatTemplate,
    Concurrency,
    Device,
    DeviceMap,
    Dtype,
    GeneratedBy,
    Json,
    Patience,
    Quantization,
    TrustRemoteCode,
)
from atlantis.cli.output import put, put_json, quiet_libraries, say
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from atlantis.cli.generation_job import Job
    from atlantis.generation.requests import Generator
    from atlantis.generation.sampling import SamplingConfig

_WHERE = "atlantis generate"


def generate(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Folder or Hub name of a language model, or its name on the server."
        ),
    ] = None,
    backend: GeneratedBy = "transformers",
    base_url: BaseUrl = None,
    concurrency: Concurrency = None,
    patience: Patience = None,
    api_key: ApiKey = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Proxy-tuning instead of --model: large=MODEL, small=MODEL and reference=MODEL "
            "(the small one, tuned)."
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            help="How far --proxy moves the large model, by default 1.0. Repeat it to compare."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="A prompt; its completion is printed as it comes.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prompts: JSONL with a column prompt or messages.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File of the completions, FILE.jsonl.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="A prompt that is text is what a user says in a chat.")
    ] = False,
    chat_template: ChatTemplate = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a completion.")] = 256,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token; 1 samples from the model.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that have this probability.")
    ] = 1.0,
    num_beams: Annotated[int, typer.Option(help="Beams of a search; 1 is none.")] = 1,
    num_return_sequences: Annotated[int, typer.Option(help="Completions of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    batch_size: BatchSize = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Complete prompts with a model, or with a large model moved by two small ones.

    A rerun goes on where it stopped.
    """
    from atlantis.cli.generation_job import read_job
    from atlantis.generation.sampling import SamplingConfig
    from atlantis.validation import validated

    chosen = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "num_beams": num_beams,
        "num_return_sequences": num_return_sequences,
        "seed": seed,
    }
    _check_source(prompt, data, out)
    job = read_job(
        backend,
        model=model,
        proxy=proxy or (),
        alphas=alpha or (),
        where=_WHERE,
        base_url=base_url,
        concurrency=concurrency,
        patience=patience,
        api_key=api_key,
        batch_size=batch_size,
        chat_template=chat_template,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        adapter=adapter,
        trust_remote_code=trust_remote_code,
    )
    sampling = validated(SamplingConfig, chosen, where=_WHERE)
    quiet_libraries()
    if data is not None and out is not None:
        made = _to_file(job, sampling, data, out, as_chat=chat)
        put_json({"out": str(out), "cached": not made}) if as_json else put(str(out))
    elif prompt is not None:
        _to_terminal(job, sampling, prompt, as_chat=chat, as_json=as_json)


def _check_source(prompt: str | None, data: Path | None, out: Path | None) -> None:
    if (prompt is None) == (data is None):
        raise ConfigError("give --prompt TEXT, or --data FILE.jsonl with --out FILE.jsonl")
    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt is empty")
    if (data is None) != (out is None):
        raise ConfigError("--data and --out belong together")
    if out is not None and out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: name a file that ends in .jsonl")


def _to_terminal(
    job: "Job", sampling: "SamplingConfig", text: str, *, as_chat: bool, as_json: bool
) -> None:
    from contextlib import ExitStack

    from atlantis.data.prompts import Prompt, user_says
    from atlantis.generation.completed_file import named
    from atlantis.generation.lazy import move
    from atlantis.generation.requests import completions_of, requests_for

    given = user_says(text, example_id="prompt") if as_chat else Prompt("prompt", text)
    requests = requests_for([given], sampling)
    is_single = sampling.num_beams == sampling.num_return_sequences == 1
    shown: list[dict[str, Any]] = []
    with ExitStack() as stack:
        generator, is_streamed = _opened(job, stack, may_stream=is_single and not as_json)
        generator.check(requests, sampling)
        for alpha in job.alphas:
            if alpha is not None:
                move(generator, alpha)
            if len(job.alphas) > 1:
                say(f"alpha {alpha:g}:", style="bold")
            finished = [pair for unit in generator.complete(requests, sampling) for pair in unit]
            for _, outcome in sorted(finished, key=itemgetter(0)):
                for said in completions_of(outcome):
                    shown.append(named(alpha, said))
                    if not (as_json or is_streamed):
                        put(said.text)
    if as_json:
        put_json({"completions": shown})


def _opened(job: "Job", stack: "ExitStack", *, may_stream: bool) -> "tuple[Generator, bool]":
    """The generator, and whether it prints tokens as they come."""
    from transformers import TextStreamer

    from atlantis.generation.backends import ProxyGeneration, TransformersGeneration

    backend = job.backend
    if not (may_stream and isinstance(backend, TransformersGeneration | ProxyGeneration)):
        return stack.enter_context(backend.open()), False
    made = partial(TextStreamer, skip_prompt=True, skip_special_tokens=True)
    return stack.enter_context(backend.open(made)), True


def _to_file(
    job: "Job", sampling: "SamplingConfig", data: Path, out: Path, *, as_chat: bool
) -> bool:
    from atlantis.data.prompts import read_prompts
    from atlantis.generation.completed_file import complete_file

    fingerprint = job.backend.fingerprint()
    prompts = read_prompts(data, as_chat=as_chat)
    with job.generators() as generators:
        return complete_file(out, prompts, sampling, generators, fingerprint=fingerprint)
