"""``atlantis report``: the page of a finished run again, or a figure of any weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import Changes, Json, RunOut
from atlantis.cli.output import put, put_json
from atlantis.cli.weight_figure import check_figure, draw_weights, named
from atlantis.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from atlantis.pipeline import AnyPipeline


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_FOLDER|RECIPE|WEIGHTS",
            help="Folder of a finished run, or its recipe; with --figure, weights files of the "
            "same rows, NAME.parquet being called NAME.",
        ),
    ],
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Draw the distributions of weights, linear and logarithmic, into FILE.svg or "
            "FILE.html; of two files their pairs as well (FILE-joint.svg)."
        ),
    ] = None,
    changes: Changes = None,
    out: RunOut = None,
    as_json: Json = False,
) -> None:
    """Rebuild the report of a finished run, or draw the distributions of weights.

    Reads the run's files only; no model is loaded.
    """
    if figure is not None:
        if changes or out is not None:
            raise ConfigError("--set and --out belong to a recipe; --figure draws weights files")
        _draw([Path(source) for source in sources], figure, as_json=as_json)
        return
    if len(sources) > 1:
        raise ConfigError(
            f"{len(sources)} runs to report: name one run folder or recipe, or weights files with "
            "--figure FILE.svg"
        )
    _rebuild(sources[0], changes, out, as_json=as_json)


def _draw(files: list[Path], figure: Path, *, as_json: bool) -> None:
    from atlantis.weighting.weights import read_weights

    check_figure(figure)
    weights = {name: read_weights(path) for name, path in named(files).items()}
    written = [str(path) for path in draw_weights(weights, figure)]
    if as_json:
        put_json({"figures": written})
        return
    for path in written:
        put(path)


def _rebuild(source: str, changes: list[str] | None, out: Path | None, *, as_json: bool) -> None:
    from atlantis.cli.recipes import finish, prepare
    from atlantis.config import load_recipe, validate_recipe

    folder = Path(source)
    if folder.is_dir():
        if changes or out is not None:
            raise ConfigError(f"{source}: a run folder has its settings; leave --set and --out out")
        recipe = _recipe_of(folder)
        pipeline = prepare(validate_recipe(recipe, where=f"{source}/report.json"), folder)
    else:
        pipeline = prepare(load_recipe(source, changes or ()), out)
    _require_finished(pipeline)
    pipeline.report.discard()
    finish(pipeline, as_json=as_json)


def _recipe_of(folder: Path) -> dict[str, Any]:
    """The settings that a run's report was made with.

    Raises:
        StoreError: There is no report.
    """
    from atlantis.disk import read_json

    path = folder / "report.json"
    if not path.is_file():
        raise StoreError(
            f"{folder}: no report.json, so that its settings are not known; name the recipe "
            f"instead: atlantis report RECIPE --out {folder}"
        )
    found: Any = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        raise StoreError(f"{path}: not a report of 'atlantis run'; name the recipe instead")
    return found["recipe"]


def _require_finished(pipeline: "AnyPipeline") -> None:
    """Refuse to rebuild what would first have to be computed.

    Raises:
        StoreError: A stage is missing; the message names the first.
    """
    needed = (*pipeline.report.inputs, *pipeline.comparison.inputs)
    missing = next((stage for target in needed for stage in target.pending()), None)
    if missing is not None:
        raise StoreError(
            f"{pipeline.out}: stage {missing.name} is not done, or was done with other settings; "
            "use 'atlantis run' with the same recipe, --set and --out"
        )
