"""Options that several commands have, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", help="Folder or Hub name of a causal language model.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the result.")]
RunOut = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run, by default runs/NAME.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of the recipe: key.subkey=value. Repeatable."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Train even with weights that are likely to do harm.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line at the end.")]
Data = Annotated[
    str,
    typer.Argument(help="JSONL, JSON or Parquet, a folder of these, or hub:NAME."),
]
MaxLength = Annotated[int, typer.Option(min=2, help="Most tokens of prompt and completion.")]
Truncation = Annotated[
    str, typer.Option(help="A longer row: drop leaves it out, keep_prefix cuts its end off.")
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(help="What turns chats into text: plain, or a Jinja file; else the model's own."),
]
TokenBudget = Annotated[
    int,
    typer.Option(
        min=1, help="Padded tokens of one forward pass; more is faster, up to the memory."
    ),
]
Dtype = Annotated[
    str, typer.Option(help="Type of the model's weights: float32, bfloat16, float16.")
]
Device = Annotated[
    str, typer.Option(help="auto takes a GPU where there is one; or cpu, cuda, cuda:1.")
]
GeneratedBy = Annotated[
    str, typer.Option("--backend", help="What completes: transformers, server or vllm.")
]
BaseUrl = Annotated[
    str | None, typer.Option(help="Address of an OpenAI-compatible server: http://HOST:8000/v1")
]
Concurrency = Annotated[
    int | None, typer.Option(min=1, help="Requests under way at a server, by default 8.")
]
Patience = Annotated[
    float | None,
    typer.Option(min=0, help="Seconds to wait for a server that is away, by default 300."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="OPENAI_API_KEY", help="Key for the server.", show_default=False),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Completions at a time, by default 8.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="Spread the models over GPUs: auto, balanced, ...")
]
Quantization = Annotated[str | None, typer.Option(help="Weights in 4bit or 8bit (bitsandbytes).")]
Adapter = Annotated[
    str | None, typer.Option(help="PEFT adapter on top of --model, a folder or Hub name.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
]
