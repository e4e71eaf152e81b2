"""The command line: ``atlantis run``, one command per stage, and the embedded demo."""

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from atlantis.errors import InputError, ResumableError

if TYPE_CHECKING:
    from atlantis.config import RunConfig
    from atlantis.stages import Stage

EXIT_RESUMABLE = 1
EXIT_INPUT = 2

app = typer.Typer(
    name="atlantis",
    help="Importance-weighted supervised fine-tuning: score, weigh, train, compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_say = Console(stderr=True, highlight=False, soft_wrap=True)
_print = Console(highlight=False, soft_wrap=True)

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of the recipe: key.subkey=value. Repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run [runs/NAME].")]
Force = Annotated[
    bool, typer.Option("--force", help="Train even with weights that are likely to do harm.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line at the end.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    changes: Changes = None,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a recipe from data to report; the same command again goes on where it stopped."""
    from atlantis.config import load_recipe

    config = load_recipe(recipe, changes or ())
    _run(config, out, dry_run=dry_run, force=force, as_json=as_json)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path(
        "runs/quickstart"
    ),
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """The whole method on an embedded corpus and tiny models made on the spot; offline."""
    from atlantis.config import load_recipe
    from atlantis.quickstart import make_quickstart

    _say.print("making the corpus and pretraining two tiny models ...")
    folder = out / "quickstart"
    make_quickstart(folder)
    own = [f"data.root={folder}", f"models={folder}"]
    config = load_recipe("quickstart", [*own, *(changes or ())])
    _run(config, out, dry_run=False, force=False, as_json=as_json)


@app.command()
def recipes() -> None:
    """List the built-in recipes."""
    from atlantis.config import builtin_recipes

    for name, path in builtin_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        _print.print(f"{name:18} {first}")


def main() -> None:
    """Entry point: every error raised on purpose becomes one line and an exit code."""
    # Nothing is fetched or sent unless a recipe names a Hub model.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _exit_codes():
        app()


@contextmanager
def _exit_codes() -> Generator[None]:
    try:
        yield
    except InputError as error:
        _say.print(f"[bold red]error:[/] {_escaped(error)}")
        sys.exit(EXIT_INPUT)
    except ResumableError as error:
        _say.print(f"[bold red]stopped:[/] {_escaped(error)}")
        sys.exit(EXIT_RESUMABLE)


def _escaped(error: Exception) -> str:
    return " ".join(str(error).split()).replace("[", r"\[")


def _run(
    config: "RunConfig", out: Path | None, *, dry_run: bool, force: bool, as_json: bool
) -> None:
    from atlantis.pipeline import Pipeline
    from atlantis.report.tables import terminal_table

    _quiet_libraries()
    pipeline = Pipeline(config, out or Path("runs") / config.name, force=force)
    stages = list(pipeline.report.walk())
    if dry_run:
        for stage in stages:
            _print.print(f"{'cached' if stage.is_done else 'to do ':6} {stage.name}")
        return
    for note in pipeline.splits.notes:
        _say.print(f"data: {_plain(note)}")
    comparison = pipeline.run(_announcer(stages))
    report = pipeline.out / "report.html"
    if as_json:
        summary = {"report": str(report), "comparison": comparison}
        sys.stdout.write(json.dumps(summary, sort_keys=True, ensure_ascii=False) + "\n")
        return
    Console().print(terminal_table(comparison))
    _print.print(f"report: {report}")


def _announcer(stages: "list[Stage]") -> "Callable[[Stage], None]":
    """Says which stage begins, how many are left, and how long it has taken so far."""
    numbers = {stage.digest: index for index, stage in enumerate(stages, 1)}
    begin = time.monotonic()

    def announce(stage: "Stage") -> None:
        seconds = time.monotonic() - begin
        number = numbers.get(stage.digest, 0)
        _say.print(rf"\[{number}/{len(stages)}] {stage.name} ({seconds:.0f} s)")

    return announce


def _quiet_libraries() -> None:
    """Our own lines say what happens; the libraries' bars and notices would bury them."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    disable: Any = transformers.utils.logging.disable_progress_bar
    disable()


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
