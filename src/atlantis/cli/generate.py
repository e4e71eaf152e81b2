"""``atlantis generate``: completions of one model, or of a large one that small ones move."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import ChatTemplate, Device, Dtype, Json
from atlantis.cli.output import put, put_json, quiet_libraries, say
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.cli.generation_job import Job

_WHERE = "atlantis generate"


def generate(
    model: Annotated[
        str | None, typer.Option("--model", help="Folder or Hub name of a language model.")
    ] = None,
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
    batch_size: Annotated[
        int, typer.Option(min=1, help="Prompts at a time; samples depend on it.")
    ] = 8,
    dtype: Dtype = "float32",
    device: Device = "auto",
    device_map: Annotated[
        str | None, typer.Option(help="Spread the models over GPUs: auto, balanced, ...")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Weights in 4bit or 8bit (bitsandbytes).")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="PEFT adapter on top of --model, a folder or Hub name.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Complete prompts with a model, or with a large model moved by two small ones.

    A rerun goes on where it stopped.
    """
    from atlantis.cli.generation_job import Job
    from atlantis.models.sampling import SamplingConfig
    from atlantis.models.settings import LoadingConfig
    from atlantis.validation import validated

    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "num_beams": num_beams,
        "num_return_sequences": num_return_sequences,
        "seed": seed,
    }
    loading = {
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "quantization": quantization,
        "adapter": adapter,
        "trust_remote_code": trust_remote_code,
    }
    _check_source(prompt, data, out)
    job = Job(
        models=_models(model, proxy or ()),
        alphas=_alphas(alpha or (), is_proxy=bool(proxy)),
        sampling=validated(SamplingConfig, sampling, where=_WHERE),
        loading=validated(LoadingConfig, loading, where=_WHERE),
        chat_template=chat_template,
    )
    quiet_libraries()
    if data is not None and out is not None:
        made = _to_file(job, data, out, as_chat=chat, batch_size=batch_size)
        put_json({"out": str(out), "cached": not made}) if as_json else put(str(out))
    elif prompt is not None:
        _to_terminal(job, prompt, as_chat=chat, as_json=as_json)


def _check_source(prompt: str | None, data: Path | None, out: Path | None) -> None:
    if (prompt is None) == (data is None):
        raise ConfigError("give --prompt TEXT, or --data FILE.jsonl with --out FILE.jsonl")
    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt is empty")
    if (data is None) != (out is None):
        raise ConfigError("--data and --out belong together")
    if out is not None and out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: name a file that ends in .jsonl")


def _models(model: str | None, proxy: Sequence[str]) -> dict[str, str]:
    from atlantis.models.proxy_roles import ROLES

    if (model is None) == (not proxy):
        raise ConfigError("give --model, or --proxy large=MODEL, small=MODEL and reference=MODEL")
    if model is not None:
        return {"model": model}
    found: dict[str, str] = {}
    for text in proxy:
        role, _, name = text.partition("=")
        if role not in ROLES or not name:
            raise ConfigError(f"--proxy {text}: write large=MODEL, small=MODEL or reference=MODEL")
        if role in found:
            raise ConfigError(f"--proxy {text}: {role} stands there twice")
        found[role] = name
    lacking = [role for role in ROLES if role not in found]
    if lacking:
        raise ConfigError(f"--proxy {lacking[0]}=MODEL is missing; proxy-tuning needs three models")
    return found


def _alphas(given: Sequence[float], *, is_proxy: bool) -> tuple[float | None, ...]:
    if not is_proxy:
        if given:
            raise ConfigError("--alpha has no effect without --proxy")
        return (None,)
    for value in given:
        if not math.isfinite(value):
            raise ConfigError(f"--alpha {value}: give a finite number, such as 1.0")
    if len(set(given)) < len(given):
        raise ConfigError("--alpha: the same value stands there twice")
    return tuple(given) or (1.0,)


def _to_terminal(job: "Job", text: str, *, as_chat: bool, as_json: bool) -> None:
    from transformers import TextStreamer

    from atlantis.cli.generation_job import move, named
    from atlantis.data.prompts import Prompt, render_prompt, user_says
    from atlantis.data.rendering import chat_template
    from atlantis.models.sampling import TransformersGenerator

    job.check()
    tokenizer = job.tokenizer()
    given = user_says(text, example_id="prompt") if as_chat else Prompt("prompt", text)
    prompt = render_prompt(given, chat_template(tokenizer, job.chat_template))
    is_streamed = not as_json and job.sampling.num_beams == job.sampling.num_return_sequences == 1
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model = job.load()
    generator = TransformersGenerator(model, tokenizer, streamer=streamer if is_streamed else None)
    generator.check([prompt], job.sampling)
    shown: list[dict[str, Any]] = []
    for alpha in job.alphas:
        move(model, alpha)
        if len(job.alphas) > 1:
            say(f"alpha {alpha:g}:", style="bold")
        (completions,) = generator.complete([prompt], job.sampling, seed=job.sampling.seed)
        shown += [named(alpha, said) for said in completions]
        if not (as_json or is_streamed):
            for said in completions:
                put(said.text)
    if as_json:
        put_json({"completions": shown})


def _to_file(job: "Job", data: Path, out: Path, *, as_chat: bool, batch_size: int) -> bool:
    from atlantis.cli.generated_file import write_once
    from atlantis.cli.generation_job import FileJob
    from atlantis.data.prompts import read_prompts

    job.check()
    prompts = read_prompts(data, as_chat=as_chat)
    work = FileJob.plan(job, prompts, batch_size=batch_size)
    return write_once(out, work.fingerprint(), work.num_units, work.lines)
