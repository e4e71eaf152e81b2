"""Weights files -> a figure of their distributions, for ``compare`` and ``report``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlantis.errors import ConfigError

if TYPE_CHECKING:
    from atlantis.report.densities import WeightSample
    from atlantis.weighting.weights import Weights

_SUFFIXES = (".svg", ".html")


def check_figure(figure: Path) -> None:
    """Refuse a figure that is neither a picture nor a page.

    Raises:
        ConfigError: It is called something else.
    """
    if figure.suffix not in _SUFFIXES:
        raise ConfigError(f"--figure {figure}: name a file that ends in {' or '.join(_SUFFIXES)}")


def named(files: Sequence[Path]) -> dict[str, Path]:
    """The files by what they are called: their names, or their paths where names are the same.

    Raises:
        ConfigError: A file is there twice.
    """
    names = [path.stem for path in files]
    if len(set(names)) < len(names):
        names = [str(path) for path in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice} is named twice")
    return dict(zip(names, files, strict=True))


def draw_weights(weights: "Mapping[str, Weights]", figure: Path) -> list[Path]:
    """Draw the distributions of weights, linear and logarithmic; of two, their pairs as well.

    Args:
        weights: Weights by what they are called.
        figure: ``.svg``, where a second chart goes into a file of its own beside it, or ``.html``.

    Returns:
        The files that were written.

    Raises:
        WeightError: They are of other rows, or no row has a weight in two of them.
    """
    from atlantis.disk import write_text
    from atlantis.report.charts import svg
    from atlantis.report.page import render_figures

    charts = _charts(weights)
    if figure.suffix == ".html":
        captioned = {caption: svg(chart) for caption, chart in charts.items()}
        write_text(figure, render_figures(f"Weights: {', '.join(weights)}", captioned))
        return [figure]
    files = [figure, figure.with_name(f"{figure.stem}-joint.svg")][: len(charts)]
    for path, chart in zip(files, charts.values(), strict=True):
        write_text(path, svg(chart, standalone=True))
    return files


def _charts(weights: "Mapping[str, Weights]") -> dict[str, Any]:
    """Charts by their caption."""
    import numpy as np

    from atlantis.report.densities import densities
    from atlantis.report.weight_figures import distribution_chart, joint_chart
    from atlantis.weighting.comparing import paired

    found = densities([_sample(name, each) for name, each in weights.items()])
    caption = f"Densities of the {found['axis']}; 1 is dashed, the middle 99 % is shown."
    charts = {caption: distribution_chart(found)}
    first, *others = weights
    pairs = [paired(weights[first], weights[other]) for other in others]  # refuses other rows
    if len(pairs) == 1:
        pair = pairs[0]
        finite = np.isfinite(pair.first) & np.isfinite(pair.second)
        charts["The rows of both: the darker, the more rows have this pair of weights."] = (
            joint_chart(pair.first[finite], pair.second[finite], titles=(first, others[0]))
        )
    return charts


def _sample(name: str, weights: "Weights") -> "WeightSample":
    import numpy as np

    from atlantis.report.densities import WeightSample

    logs = np.array([w for w in weights.log_weight if w is not None and np.isfinite(w)])
    shift = weights.diagnostics.get("log_normaliser")
    return WeightSample(name, logs, None if shift is None else logs + float(shift))
