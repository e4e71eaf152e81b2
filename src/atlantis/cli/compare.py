"""``atlantis compare``: do several weights files of the same rows say the same?"""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import Json
from atlantis.cli.output import put, put_json, put_table, two_columns
from atlantis.cli.weight_figure import check_figure, draw_weights, named

if TYPE_CHECKING:
    from atlantis.weighting.weights import Weights


def compare(
    files: Annotated[
        list[Path],
        typer.Argument(help="Weights files of the same rows; NAME.parquet is called NAME."),
    ],
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Draw the distributions, FILE.svg or FILE.html; of two files, their pairs as well."
        ),
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(min=100, help="Bootstrap replicates.")] = 2000,
    as_json: Json = False,
) -> None:
    """Compare weights of the same rows, such as those of two model families.

    Rank correlation, overlap of the heaviest rows, and how often they disagree whether a row weighs
    more than 1, with intervals, beside what independent weights would give.
    """
    from atlantis.weighting.weights import read_weights

    if figure is not None:
        check_figure(figure)
    weights = {name: read_weights(path) for name, path in named(files).items()}
    found = [
        {"first": first, "second": second} | _compared(weights, first, second, num_bootstrap)
        for first, second in itertools.combinations(weights, 2)
    ]
    drawn = [] if figure is None else draw_weights(weights, figure)
    if as_json:
        put_json({"comparisons": found})
        return
    for pair in found:
        put_table(two_columns(f"{pair['first']} and {pair['second']}", _rows(pair)))
    for path in drawn:
        put(str(path))


def _compared(
    weights: "dict[str, Weights]", first: str, second: str, num_bootstrap: int
) -> dict[str, Any]:
    from atlantis.weighting import comparing

    pair = comparing.paired(weights[first], weights[second])
    return comparing.compare(pair, num_replicates=num_bootstrap)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    disagreement, spearman = found["disagreement"], found["spearman"]
    rows = [
        ("rows", f"{found['num_rows']:,}"),
        ("left out", f"{found['num_left_out']:,}"),
        ("Spearman", "none: one side is constant" if spearman is None else _interval(spearman, 2)),
    ]
    for share, overlap in found["top_overlap"].items():
        rows.append((f"overlap of the top {float(share):.0%}", f"{overlap:.1%}"))
    first, second = found["share_above_1"]
    rows += [
        ("1 is the", found["threshold"]),
        ("share above 1", f"{first:.1%}, {second:.1%}"),
        ("disagreement at 1", _interval(disagreement, 1, percent=True)),
        ("... if independent", f"{disagreement['independent']:.1%}"),
    ]
    return rows


def _interval(value: dict[str, float], digits: int, *, percent: bool = False) -> str:
    kind = f".{digits}%" if percent else f".{digits}f"
    numbers = [format(value[name], kind) for name in ("estimate", "low", "high")]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
