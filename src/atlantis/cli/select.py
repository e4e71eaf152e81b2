"""``atlantis select``: which rows to train on, as a weights file and as data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlantis.cli.options import ChatTemplate, Device, Dtype, Json, MaxLength, Truncation
from atlantis.cli.output import put, put_json, quiet_libraries, warn
from atlantis.errors import ConfigError, DataError

if TYPE_CHECKING:
    from atlantis.selection.stage import Selection


def select(
    out: Annotated[Path, typer.Option("--out", help="Weights file to write, FILE.parquet.")],
    data: Annotated[
        str | None,
        typer.Option(help="Rows to select from: JSONL, JSON, Parquet, a folder, or hub:NAME."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="ifd_perplexity_ratio (Superfiltering), ifd_loss_ratio (Cherry), weight; or the "
            "baselines random, longest, length_matched."
        ),
    ] = "ifd_perplexity_ratio",
    fraction: Annotated[
        float | None, typer.Option(help="Share of the rows to select, by default 0.1.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Rows to select, instead of a share.")] = None,
    of: Annotated[
        str, typer.Option(help="What the share is of: all rows, or those that are kept.")
    ] = "all",
    min_tokens: Annotated[
        int, typer.Option(help="Drop completions with fewer tokens before ranking.")
    ] = 1,
    drop_unhelped: Annotated[
        bool, typer.Option(help="IFD: drop rows at 1 and above, whose prompt does not help.")
    ] = True,
    pool: Annotated[
        float | None,
        typer.Option(help="Take this share first, and of it the rows that cover the others best."),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(help="For --pool: one vector per row in order, FILE.npy; else the model's."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model that judges the rows: the one to train, or a small one."),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Folder of its scores, by default OUT.scores.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of these rows, to rank by or to keep.")
    ] = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Selected rows keep their weights.")
    ] = False,
    filtered: Annotated[
        Path | None, typer.Option(help="Also write the selected rows, in the data's own format.")
    ] = None,
    max_length: MaxLength = 1024,
    truncation: Truncation = "drop",
    chat_template: ChatTemplate = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random choices.")] = 0,
    as_json: Json = False,
) -> None:
    """Choose the rows to train on.

    Writes a weights file for 'atlantis train' (zero for the others), and beside it
    OUT.ranking.parquet with the value of every row.
    """
    from atlantis import api
    from atlantis.disk import write_table

    quiet_libraries()
    _check_files(out, data, filtered)
    found = api.select(
        data,
        model=model,
        scores=None if model is None else scores or out.with_suffix(".scores"),
        weights=weights,
        embeddings=None if embeddings is None else _embeddings(embeddings, data),
        scoring={
            "max_length": max_length,
            "truncation": truncation,
            "chat_template": chat_template,
            "dtype": dtype,
            "device": device,
        },
        method=method,
        share=_share(fraction, count),
        of=of,
        min_tokens=min_tokens,
        drop_unhelped=drop_unhelped,
        pool=pool,
        keep_weights=keep_weights,
        seed=seed,
    )
    found.weights.save(out)
    write_table(out.with_suffix(".ranking.parquet"), found.ranking)
    if filtered is not None and data is not None:
        _write_filtered(Path(data), found, filtered)
    _tell(out, found, filtered, as_json=as_json)


def _share(fraction: float | None, count: int | None) -> float | int:
    if fraction is not None and count is not None:
        raise ConfigError("give --fraction or --count, not both")
    if count is not None:
        return count
    return 0.1 if fraction is None else fraction


def _check_files(out: Path, data: str | None, filtered: Path | None) -> None:
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: name a file that ends in .parquet")
    if filtered is None:
        return
    if data is None:
        raise ConfigError("--filtered needs --data, the rows to copy")
    if filtered.exists() and filtered.resolve() == Path(data).resolve():
        raise ConfigError(f"--filtered {filtered} is the data itself; name another file")
    if filtered.suffix.lower() != Path(data).suffix.lower():
        raise ConfigError(
            f"--filtered {filtered}: the rows stay as they are; end it in {Path(data).suffix}"
        )


def _embeddings(path: Path, data: str | None) -> dict[str, Any]:
    """The rows of a matrix by the ids of the data's rows."""
    import numpy as np

    from atlantis.data.sources import open_source

    if data is None:
        raise ConfigError("--embeddings needs --data, whose rows they belong to")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no matrix ({error}); write it with numpy.save") from None
    ids = [row.example_id for row in open_source(data)]
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise DataError(f"{path}: has the shape {vectors.shape}, but the data {len(ids):,} rows")
    return dict(zip(ids, vectors.astype(np.float32), strict=True))


def _write_filtered(data: Path, found: "Selection", out: Path) -> None:
    from atlantis.data.subset import write_subset

    chosen = zip(found.weights.example_id, found.weights.weight, strict=True)
    write_subset(data, {name for name, weight in chosen if weight}, out)


def _tell(out: Path, found: "Selection", filtered: Path | None, *, as_json: bool) -> None:
    report = found.weights.diagnostics
    for warning in report["warnings"]:
        warn(warning)
    if as_json:
        put_json({"out": str(out), "diagnostics": report})
        return
    dropped = "".join(f", {count:,} dropped ({why})" for why, count in report["dropped"].items())
    unscored = report["num_examples"] - report["num_ok"]
    left_out = f", {unscored:,} could not be scored" if unscored else ""
    put(
        f"{out}: {report['num_selected']:,} of {report['num_examples']:,} rows{dropped}{left_out}"
        + ("" if filtered is None else f"; {filtered}")
    )
