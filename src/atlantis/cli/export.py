"""``atlantis export``: data and weights to a file for another trainer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlantis.cli.options import Json
from atlantis.cli.output import put, put_json, warn
from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.training.export import Exported, Layout


def export(
    data: Annotated[
        str, typer.Option("--data", help="JSONL, JSON or Parquet, a folder of these, or hub:NAME.")
    ],
    weights: Annotated[Path, typer.Option("--weights", help="Weights file of these data.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, FILE.jsonl.")],
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="Whose trainer reads it: trl, ms-swift or llama-factory (v1); or resample, rows "
            "drawn by their weights, for any trainer.",
        ),
    ] = "trl",
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="resample: rows to draw, by default as many as have a weight."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="resample: seed of the draws, by default 0.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Export even weights that leave almost no data.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rows with their weights as a file for another trainer.

    Rows without a weight, and those whose weight is zero, are left out and counted.
    """
    from atlantis.cli.rows_to_export import rows_to_export
    from atlantis.training.export import export as write

    chosen = _layout(layout, rows, seed)
    _check_out(out, data)
    weighted = rows_to_export(data, weights, force=force)
    for warning in weighted.warnings:
        warn(warning)
    assert weighted.weights is not None  # there is a file of weights
    done = write(weighted.rows, weighted.weights, out, layout=chosen)
    for note in done.notes:
        warn(note)
    left_out = weighted.left_out | done.left_out
    _tell(out, layout, done, left_out=left_out, as_json=as_json)


def _layout(name: str, rows: int | None, seed: int | None) -> "Layout":
    from atlantis.training import export as layouts

    if name == "resample":
        return layouts.Resampled(rows, 0 if seed is None else seed)
    others: dict[str, Layout] = {
        "trl": layouts.TrlLayout(),
        "ms-swift": layouts.MsSwiftLayout(),
        "llama-factory": layouts.LlamaFactoryLayout(),
    }
    if name not in others:
        raise ConfigError(f"--format {name}: choose {', '.join(others)} or resample")
    for option, value in (("--rows", rows), ("--seed", seed)):
        if value is not None:
            raise ConfigError(f"{option} has no effect on --format {name}; leave it out")
    return others[name]


def _check_out(out: Path, data: str) -> None:
    if out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: name a file that ends in .jsonl")
    if out.exists() and out.resolve() == Path(data).resolve():
        raise ConfigError(f"--out {out} is the data itself; name another file")


def _tell(
    out: Path, layout: str, done: "Exported", *, left_out: dict[str, int], as_json: bool
) -> None:
    if as_json:
        counts = {"num_rows": done.num_rows, "num_distinct": done.num_distinct}
        put_json({"out": str(out), "format": layout, "left_out": left_out} | counts)
        return
    reasons = "".join(f", {count:,} left out ({why})" for why, count in left_out.items())
    distinct = f", {done.num_distinct:,} distinct" if layout == "resample" else ""
    put(f"{out}: {done.num_rows:,} rows for {layout}{distinct}{reasons}")
