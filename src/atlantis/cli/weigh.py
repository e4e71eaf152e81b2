"""``atlantis weigh``: score stores to a weights file and its diagnostics."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from atlantis.cli.options import Json
from atlantis.cli.output import put, put_json, put_table, two_columns, warn
from atlantis.errors import ConfigError, WeightError

if TYPE_CHECKING:
    from atlantis.weighting.weights import Weights

_FIGURES = {
    "effective_sample_size": "effective sample size",
    "ess_fraction": "ESS / N",
    "largest_share": "largest share",
    "top_1_percent_share": "share of the top 1 %",
    "pareto_k": "Pareto k",
    "spearman_length": "Spearman with length",
    "kappa": "kappa",
    "clipped_low_fraction": "clipped low",
    "clipped_high_fraction": "clipped high",
}


def weigh(
    out: Annotated[Path, typer.Option("--out", help="Weights file to write, FILE.parquet.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="influence, algorithm1, proxy, ratio, loss_ratio, uniform, shuffled, report2025; "
            "or the settings of a scheme in braces: {kind: drop_lowest, fraction: 0.2}, with "
            "within: label (needs --data) to drop that share of every label."
        ),
    ] = "influence",
    large: Annotated[
        Path | None, typer.Option(help="Score store of the model to be trained.")
    ] = None,
    small: Annotated[Path | None, typer.Option(help="Score store of the small base model.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Score store of the tuned small model.")
    ] = None,
    proxy: Annotated[
        Path | None, typer.Option(help="Score store of the large model by --backend proxy.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Power of the length: 1 is the mean per token, 0 the whole sequence."),
    ] = None,
    kappa: Annotated[
        float | None, typer.Option(help="Power of the weights; under 1 flattens them.")
    ] = None,
    min_ess_fraction: Annotated[
        float | None, typer.Option(help="Flatten until ESS / N is at least this.")
    ] = None,
    clip_factor: Annotated[
        float | None, typer.Option(help="Keep weights within this factor of the median.")
    ] = None,
    normalise_within: Annotated[
        str | None,
        typer.Option(help="Mean one inside each group: none, label (needs --data), length_decile."),
    ] = None,
    normalise_for: Annotated[
        str, typer.Option(help="tokens for losses that average tokens, examples for the others.")
    ] = "tokens",
    data: Annotated[
        Path | None, typer.Option(help="The scored JSONL file, for its labels (completions).")
    ] = None,
    as_json: Json = False,
) -> None:
    """One weight per example from the scores of up to three models.

    Writes the weights as Parquet and their diagnostics as JSON beside it.
    """
    from atlantis import api

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: name a file that ends in .parquet")
    stores = {"large": large, "small": small, "reference": reference, "proxy": proxy}
    weights = api.weigh(
        **stores,
        scheme=_scheme(scheme),
        alpha=alpha,
        kappa=kappa,
        min_ess_fraction=min_ess_fraction,
        clip_factor=clip_factor,
        normalise_within=normalise_within,
        normalise_for=normalise_for,
        labels=None if data is None else _labels(data, stores),
    )
    weights.save(out)
    for warning in weights.diagnostics["warnings"]:
        warn(warning)
    if as_json:
        put_json({"out": str(out), "diagnostics": weights.diagnostics})
        return
    put_table(two_columns(f"weights of {len(weights.weight):,} examples", _rows(weights)))
    put(str(out))


def _scheme(text: str) -> str | dict[str, Any]:
    """A name, or the settings of a scheme written as YAML in braces."""
    if not text.startswith("{"):
        return text
    try:
        settings: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--scheme {text}: not valid YAML; write {{kind: NAME, ...}}") from None
    return settings


def _labels(data: Path, stores: Mapping[str, Path | None]) -> dict[str, str]:
    """Label of each example, where the file is the one that was scored."""
    from atlantis.data.formats import read_prompt_completion
    from atlantis.data.rendering import digest_rows
    from atlantis.store import ScoreStore

    rows = read_prompt_completion(data).rows
    digest = digest_rows(rows).source
    for folder in stores.values():
        if folder is not None and ScoreStore(folder).fingerprint["source"] != digest:
            raise WeightError(f"{folder} holds scores of other data than {data}; score it again")
    return {row.example_id: str(row.label) for row in rows}


def _rows(weights: "Weights") -> list[tuple[str, str]]:
    """What the diagnostics say, the weight of each group last."""
    report = weights.diagnostics
    counts = [(f"status {name}", f"{count:,}") for name, count in report["status_counts"].items()]
    figures = [
        (title, "none" if report[key] is None else f"{report[key]:.4g}")
        for key, title in _FIGURES.items()
    ]
    by_label = report["mean_weight_by_group"].get("label", {})
    means = [(f"mean weight, {name}", f"{group['mean']:.3g}") for name, group in by_label.items()]
    return [*counts, *figures, *means]
