"""``atlantis run``, ``quickstart``, ``recipes`` and ``families``: whole experiments."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlantis.cli.options import Changes, Force, Json, RunOut
from atlantis.cli.output import put, put_json, put_table, quiet_libraries, say
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.config import Recipe
    from atlantis.pipeline import AnyPipeline
    from atlantis.stages import Stage


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    changes: Changes = None,
    out: RunOut = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a recipe from data to report.

    The same command again goes on where it stopped, after a kill too.
    """
    from atlantis.config import load_recipe

    pipeline = prepare(load_recipe(recipe, changes or ()), out, force=force)
    for note in pipeline.notes:
        say(note)
    if dry_run:
        _show_plan(pipeline, as_json=as_json)
        return
    finish(pipeline, as_json=as_json)


def quickstart(
    demo: Annotated[
        str, typer.Argument(help="quickstart (weights), or rewrite-demo (data rewriting).")
    ] = "quickstart",
    out: RunOut = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """The whole method on an embedded corpus; offline.

    The corpus and tiny models are made on the spot.
    """
    from atlantis.config import load_recipe
    from atlantis.quickstart import make

    makers = {
        "quickstart": (make.make_quickstart, "models"),
        "rewrite-demo": (make.make_word_problems, "model"),
    }
    if demo not in makers:
        raise ConfigError(f"{demo}: no demo; there are {', '.join(makers)}")
    make_inputs, models = makers[demo]
    out = out or Path("runs") / demo
    folder = out / "quickstart"
    model = folder if models == "models" else folder / "model"
    own = [f"data.root={folder}", f"{models}={model}"]
    config = load_recipe(demo, [*own, *(changes or ())])
    say("making the corpus and pretraining tiny models ...")
    make_inputs(folder)
    finish(prepare(config, out, force=False), as_json=as_json)


def recipes(as_json: Json = False) -> None:
    """List the built-in recipes."""
    from atlantis.recipes import builtin_recipes

    titles = {
        name: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for name, path in builtin_recipes().items()
    }
    if as_json:
        put_json(titles)
        return
    for name, title in titles.items():
        put(f"{name:18} {title}")


def families(
    file: Annotated[
        Path | None, typer.Option(help="YAML file with families of your own, added to these.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List known model families.

    A recipe that names only a large model of one takes the small model and the reference from it.
    """
    from atlantis.models import families as known

    found = known.families(file)
    if as_json:
        put_json({name: family.model_dump(mode="json") for name, family in found.items()})
        return
    for name, family in found.items():
        put(f"{name}: small {family.small}, reference {family.reference}")
        put(f"    large {', '.join(family.large)}")


def prepare(config: "Recipe", out: Path | None, *, force: bool = True) -> "AnyPipeline":
    """The pipeline of a recipe; its folder is ``runs/NAME`` unless ``out`` names another."""
    from atlantis.pipeline import pipeline_of

    quiet_libraries()
    return pipeline_of(config, out or Path("runs") / config.name, force=force)


def _show_plan(pipeline: "AnyPipeline", *, as_json: bool) -> None:
    plan = pipeline.plan()
    if as_json:
        put_json({"stages": [{"name": stage.name, "state": state} for stage, state in plan]})
        return
    for stage, state in plan:
        put(f"{state:8} {stage.name}")


def finish(pipeline: "AnyPipeline", *, as_json: bool) -> None:
    """Do what is not there yet, and print the comparison of the arms."""
    for note in pipeline.data_notes:
        say(f"data: {note}")
    num_pending = sum(state == "to do" for _, state in pipeline.plan())
    comparison = pipeline.run(_announcer(num_pending))
    page = pipeline.out / "report.html"
    if as_json:
        put_json({"report": str(page), "comparison": comparison})
        return
    put_table(pipeline.terminal_table(comparison))
    put(f"report: {page}")


def _announcer(num_pending: int) -> "Callable[[Stage], None]":
    """Says which stage begins, how many there are, and how long it has taken so far."""
    numbers, begin = itertools.count(1), time.monotonic()

    def announce(stage: "Stage") -> None:
        seconds = time.monotonic() - begin
        say(f"[{next(numbers)}/{num_pending}] {stage.name} ({seconds:.0f} s)")

    return announce
