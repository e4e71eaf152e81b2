"""The command line: one file per command, put together here.

``exits`` turns errors and signals into exit codes, ``options`` and ``output`` are what the commands
share, ``once`` makes a command's result folder whole or not at all. Heavy libraries are imported
inside the commands, so that ``--help`` does not wait for them.
"""

import os
from typing import Annotated

import typer

from atlantis.cli.compare import compare
from atlantis.cli.doctor import doctor
from atlantis.cli.evaluate import evaluate
from atlantis.cli.evaluate_maths import evaluate_maths
from atlantis.cli.exits import exit_codes
from atlantis.cli.export import export
from atlantis.cli.generate import generate
from atlantis.cli.output import put
from atlantis.cli.recipes import families, quickstart, recipes, run
from atlantis.cli.report import report
from atlantis.cli.rewrite import rewrite
from atlantis.cli.score import score
from atlantis.cli.select import select
from atlantis.cli.train import train
from atlantis.cli.weigh import weigh

app = typer.Typer(
    name="atlantis",
    help="Importance-weighted supervised fine-tuning: score, weigh, train, compare.",
    epilog="Exit codes: 0 done, 1 stopped (the same command goes on), 2 bad input or options.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's panels cut long option names on a narrow terminal
    pretty_exceptions_enable=False,
)
for command in (run, quickstart, report, score, weigh, select, rewrite, train, export, evaluate):
    app.command()(command)
for command in (evaluate_maths, generate, compare, recipes, families, doctor):
    app.command()(command)


def main() -> None:
    """Entry point: every error raised on purpose becomes one line and an exit code."""
    # Nothing is fetched or sent unless a Hub model is named.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with exit_codes():
        app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from atlantis import __version__

        put(f"atlantis {__version__}")
        raise typer.Exit


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction] - the options of `atlantis` itself
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass
