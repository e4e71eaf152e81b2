"""``score``, ``select`` and ``weigh`` as functions: what the commands of the same name do."""

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from atlantis.data.sources import GivenRows, open_source
from atlantis.disk import exclusive
from atlantis.errors import ConfigError, DataError
from atlantis.records import Row
from atlantis.store import ScoreStore
from atlantis.validation import validated

if TYPE_CHECKING:
    from atlantis.scoring.backends import Backend
    from atlantis.scoring.stage import ScoringJob
    from atlantis.selection.stage import Selection
    from atlantis.weighting.stage import Weights

_PathLike = str | os.PathLike[str]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def score(
    data: _PathLike | Iterable[Row],
    *,
    model: str,
    out: _PathLike,
    max_length: int = 1024,
    truncation: str = "drop",
    template: str = "shared",
    chat_template: str | None = None,
    score_end_of_turn: bool = False,
    condition: str = "prompt",
    token_budget: int | str = "auto",
    tokenizer_workers: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | None = None,
    attention: str = "auto",
    quantization: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "transformers",
    base_url: str | None = None,
    served_model: str | None = None,
    api_key: str | None = None,
    parity_rows: int = 16,
    proxy_small: str | None = None,
    proxy_reference: str | None = None,
    proxy_alpha: float | None = None,
) -> ScoreStore:
    """Log-probability of every completion under a model, on disk; goes on after a kill.

    Args:
        data: A file or folder (JSONL, JSON, Parquet), ``hub:NAME``, or rows with unique ids that
            can be iterated over twice.
        model: Folder or Hub name of a causal or encoder-decoder language model.
        out: Folder of the score store. One that holds the same scores already is left as it is.
        max_length: Most tokens of prompt and completion.
        truncation: ``drop`` gives a longer row the status ``too_long`` and no score,
            ``keep_prefix`` scores what fits and counts it.
        template: ``shared`` if chats must read the same to all models, ``native`` if each has its
            own template.
        chat_template: What turns chats into text: ``plain`` or a file with a Jinja template; by
            default the tokenizer's own, and the plain one where it has none.
        score_end_of_turn: Whether the end-of-turn token counts.
        condition: ``prompt``, or ``none`` to score completions by themselves: the same ids behind
            a neutral token.
        token_budget: Padded tokens of one forward pass; ``auto`` is measured on a GPU.
        tokenizer_workers: Processes that tokenize ahead of the model; 0 does it in a thread.
        dtype: ``float32``, ``bfloat16`` or ``float16``; log-probabilities are float32 in any case.
        device: ``auto`` takes a GPU where there is one; or a torch device.
        device_map: Spreads the model over several GPUs: ``auto``, ``balanced``, ...
        attention: ``auto``, ``sdpa``, ``eager`` or ``flash_attention_2``.
        quantization: ``4bit`` or ``8bit``; needs bitsandbytes.
        revision: Commit, branch or tag of a Hub model.
        adapter: A PEFT adapter on top of the model.
        trust_remote_code: Whether code that comes with the model may run.
        backend: ``transformers``, ``vllm``, ``server`` with a ``base_url``, or ``proxy``: the model
            moved by what tuning did to a small one, for the scheme ``proxy``.
        base_url: Address of an OpenAI-compatible server, ending in ``/v1``.
        served_model: The model's name there, if it is another than ``model``.
        api_key: Key for the server.
        parity_rows: Rows on which ``vllm`` and ``server`` must agree with transformers; 0 for none.
        proxy_small: For ``proxy``: the small base model.
        proxy_reference: For ``proxy``: the small model, tuned.
        proxy_alpha: For ``proxy``: how far, by default 1.

    Returns:
        The complete store.

    Raises:
        ConfigError: An option is wrong, or has no effect.
        DataError: The data are missing or malformed.
        ModelError: There is no such model, or a back end does not agree with transformers.
        StoreError: ``out`` holds scores of another model, other data or other settings.
        ResumableError: Another process is writing there, or the server failed.
    """
    given = locals()  # all that was asked for, before anything else has a name here
    options = {name: given[name] for name in _options()}
    return _score(data, {Path(out): model}, options)[0]


def score_models(
    data: _PathLike | Iterable[Row], models: Mapping[str, str], *, out: _PathLike, **options: Any
) -> dict[str, ScoreStore]:
    """Scores of the same rows under several models, in one pass where they share a tokenizer.

    Rows are then read and tokenized once, and the models are in memory together. Models with other
    tokenizers have a pass of their own.

    Args:
        data: As for `score`.
        models: Folder or Hub name of each model by what it is called: ``small``, ``reference``.
        out: Folder of the stores; each has the name of its model.
        options: Those of `score`, the same for all models.

    Returns:
        The complete stores by name.

    Raises:
        ConfigError: A name is no name of a folder; or as `score`, like all other errors.
    """
    if not models:
        raise ConfigError("score: no model is given")
    for name in models:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"score: model name {name!r}: use letters, digits, '-', '_' and '.'")
    chosen = _options() | options
    if len(models) > 1:
        for option in ("adapter", "revision", "served_model", "base_url", "proxy_small"):
            if chosen[option] is not None:
                raise ConfigError(
                    f"score: {option} belongs to one model; score that model by itself"
                )
        if chosen["backend"] != "transformers":
            raise ConfigError(
                f"score: backend {chosen['backend']} holds one model; score each by itself"
            )
    stores = _score(data, {Path(out) / name: model for name, model in models.items()}, chosen)
    return dict(zip(models, stores, strict=True))


def weigh(
    *,
    large: ScoreStore | _PathLike | None = None,
    small: ScoreStore | _PathLike | None = None,
    reference: ScoreStore | _PathLike | None = None,
    proxy: ScoreStore | _PathLike | None = None,
    scheme: str | Mapping[str, Any] = "influence",
    alpha: float | None = None,
    kappa: float | None = None,
    min_ess_fraction: float | None = None,
    clip_factor: float | None = None,
    normalise_within: str | None = None,
    normalise_for: str = "tokens",
    labels: Mapping[str, str] | None = None,
) -> "Weights":
    """One weight per example from the scores of up to three models.

    An option that is None stays as the scheme or preset has it.

    Args:
        large: Scores of the model to be trained, a store or its folder. A scheme needs only the
            models that it names.
        small: Scores of the small base model.
        reference: Scores of the tuned small model.
        proxy: Scores of the large model by the back end ``proxy``, for the scheme of that name.
        scheme: Name of a scheme or preset, or the settings of a scheme (``{"kind": ..., ...}``).
        alpha: Power of the completion's length: 1 is the mean per token, 0 the whole sequence.
        kappa: Power of the weights: over 1 sharpens, under 1 flattens.
        min_ess_fraction: Flatten until the effective sample size is this share of the examples.
        clip_factor: Keep weights within this factor of the median weight.
        normalise_within: Mean one inside each ``label`` or ``length_decile``, or ``none``.
        normalise_for: ``tokens`` for losses that are a mean over tokens, ``examples`` for a mean
            over examples.
        labels: Class of each example by id, for ``normalise_within="label"``.

    Raises:
        ConfigError: An option is wrong, or has no effect on the scheme.
        WeightError: Scores are missing, belong to other data, or cannot be combined.
        StoreError: A folder is no complete score store.
    """
    from atlantis.weighting import stage as weighting

    settings = _weighting_settings(scheme, alpha)
    changes = {
        "kappa": kappa,
        "min_ess_fraction": min_ess_fraction,
        "clip": None if clip_factor is None else {"kind": "around_median", "factor": clip_factor},
        "normalise_within": normalise_within,
    }
    settings |= {name: value for name, value in changes.items() if value is not None}
    return weighting.weigh(
        large=_store(large),
        small=_store(small),
        reference=_store(reference),
        proxy=_store(proxy),
        config=validated(weighting.WeightingConfig, settings, where="weigh"),
        normalise_for=_check_normalise_for(normalise_for),
        labels=labels,
    )


def select(
    data: _PathLike | Iterable[Row] | None = None,
    *,
    model: str | None = None,
    scores: _PathLike | None = None,
    weights: "Weights | _PathLike | None" = None,
    embeddings: Mapping[str, Any] | None = None,
    scoring: Mapping[str, Any] | None = None,
    **settings: Any,
) -> "Selection":
    """Choose the rows to train on: a weights file of zeros and ones.

    Instruction-following difficulty takes two passes of one model over the same completion ids,
    after the prompt and by themselves; both are score stores and go on after a kill.

    Args:
        data: The rows, as for `score`; not needed where there are weights and no ``model``.
        model: Folder or Hub name of the model that judges the rows: the one to be trained (IFD), or
            a small one (Superfiltering).
        scores: Folder of the two stores, ``given`` and ``alone``.
        weights: Weights of the same rows: to rank by (method ``weight``) or to keep
            (``keep_weights``).
        embeddings: One vector per row by id, for ``pool``; by default the mean hidden states of
            ``model``.
        scoring: Options of `score`: ``max_length``, ``truncation``, ``dtype``, ...
        settings: Fields of `atlantis.selection.stage.SelectionConfig`: ``method``, ``share``, ...

    Returns:
        The weights, zero for rows that are not selected, and the ranking.

    Raises:
        ConfigError: An option is wrong, or has no effect.
        WeightError: What the method needs is missing, belongs to other rows, or leaves no row.
    """
    from atlantis.selection import stage as selection
    from atlantis.weighting.weights import Weights, read_weights

    config = validated(selection.SelectionConfig, settings, where="select")
    if (model is None) != (scores is None) or (model is not None and data is None):
        raise ConfigError("select: data, model and scores (a folder for them) go together")
    given = alone = None
    if model is not None and data is not None and scores is not None:
        (job,) = _prepare(data, [model], _options() | dict(scoring or {}))
        given, alone = _score_both(job, Path(scores))
        if config.pool is not None and embeddings is None:
            embeddings = _embeddings(job)
    if weights is not None and not isinstance(weights, Weights):
        weights = read_weights(Path(weights))
    return selection.select(
        config, given=given, alone=alone, weights=weights, embeddings=embeddings
    )


def _score_both(job: "ScoringJob", out: Path) -> tuple[ScoreStore, ScoreStore]:
    """Scores of the completions after their prompts and by themselves, one load of the model."""
    given, alone = _run({out / "given": job, out / "alone": job.alone()})
    return given, alone


def _embeddings(job: "ScoringJob") -> dict[str, Any]:
    from atlantis.models.loading import load_model
    from atlantis.scoring.embeddings import mean_hidden_states

    rows = [row for row in job.tokenizing(list(job.examples)) if row.status == "ok"]
    network = load_model(job.model.name, job.model.loading)
    ids = [row.input_ids for row in rows]
    vectors = mean_hidden_states(network, ids, token_budget=8192)
    return {row.example_id: vector for row, vector in zip(rows, vectors, strict=True)}


def _options() -> dict[str, Any]:
    """Defaults of what `score` takes besides data, model and folder."""
    parameters = inspect.signature(score).parameters
    return {n: p.default for n, p in parameters.items() if p.default is not p.empty}


def _score(
    data: _PathLike | Iterable[Row], models: Mapping[Path, str], options: Mapping[str, Any]
) -> list[ScoreStore]:
    """Score the rows under every model into its folder."""
    jobs = _prepare(data, list(models.values()), options)
    return _run(dict(zip(models, jobs, strict=True)))


def _run(jobs: "Mapping[Path, ScoringJob]") -> list[ScoreStore]:
    """Run jobs that nobody else is running in the same folders."""
    from atlantis.scoring import stage as scoring

    with ExitStack() as locks:
        for out in jobs:
            locks.enter_context(exclusive(out))
        return scoring.run_all(jobs)


def _prepare(
    data: _PathLike | Iterable[Row], models: list[str], options: Mapping[str, Any]
) -> "list[ScoringJob]":
    from atlantis.models.loading import LoadingConfig
    from atlantis.scoring import stage as scoring

    def part(kind: type[BaseModel]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name in kind.model_fields}

    unknown = options.keys() - _options().keys()
    if unknown:
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
    return scoring.prepare_all(
        _rows(data),
        models,
        config=validated(scoring.ScoringConfig, part(scoring.ScoringConfig), where="score"),
        loading=validated(LoadingConfig, part(LoadingConfig), where="score"),
        backend=_backend(options),
    )


_OF_SERVER = ("base_url", "served_model", "api_key")
_OF_PROXY = ("proxy_small", "proxy_reference", "proxy_alpha")


def _backend(options: Mapping[str, Any]) -> "Backend":
    """What computes the scores; an option without effect is refused."""
    from atlantis.scoring import backends

    kind = options["backend"]
    if kind not in ("transformers", "vllm", "server", "proxy"):
        raise ConfigError(f"score: backend {kind!r}: choose transformers, vllm, server or proxy")
    for names, owner in ((_OF_SERVER, "server"), (_OF_PROXY, "proxy")):
        given = [name for name in names if options[name] is not None]
        if given and kind != owner:
            raise ConfigError(f"score: {given[0]} has no effect on backend {kind}; leave it out")
    if kind == "server":
        if options["base_url"] is None:
            raise ConfigError("score: backend server needs base_url, such as http://HOST:8000/v1")
        base_url, served_model, api_key = (options[name] for name in _OF_SERVER)
        return backends.ServerBackend(base_url, served_model, api_key, options["parity_rows"])
    if kind == "proxy":
        small, reference, alpha = (options[name] for name in _OF_PROXY)
        if small is None or reference is None:
            raise ConfigError("score: backend proxy needs proxy_small and proxy_reference")
        return backends.ProxyBackend(small, reference, 1.0 if alpha is None else float(alpha))
    if kind == "vllm":
        return backends.VllmBackend(options["parity_rows"])
    return backends.TransformersBackend()


def _rows(data: _PathLike | Iterable[Row]) -> Iterable[Row]:
    """Rows that can be iterated over again and again, each of them checked."""
    if isinstance(data, str | os.PathLike):
        return open_source(os.fspath(data))
    if iter(data) is data:
        raise DataError("the rows can be iterated over once only; give a list, or a file")
    return GivenRows(data)


def _weighting_settings(scheme: str | Mapping[str, Any], alpha: float | None) -> dict[str, Any]:
    """The settings behind a name, with the power of the length put where the scheme has it."""
    from atlantis.weighting.schemes import PRESETS

    if isinstance(scheme, str) and scheme in PRESETS:
        settings = PRESETS[scheme].model_dump()
    else:
        settings = {"scheme": {"kind": scheme} if isinstance(scheme, str) else dict(scheme)}
    if alpha is not None:
        own: dict[str, Any] = settings["scheme"]
        if own.get("kind") in ("loss_ratio", "uniform"):
            raise ConfigError(f"weigh: alpha has no effect on scheme {own['kind']!r}; leave it out")
        if own.get("kind") in ("shuffled", "drop_lowest"):
            of = own.get("of", "influence")
            own["of"] = ({"kind": of} if isinstance(of, str) else dict(of)) | {"alpha": alpha}
        else:
            own["alpha"] = alpha
    return settings


def _check_normalise_for(value: str) -> Literal["tokens", "examples"]:
    if value not in ("tokens", "examples"):
        raise ConfigError(f"weigh: normalise_for {value!r}: choose tokens or examples")
    return value


def _store(store: ScoreStore | _PathLike | None) -> ScoreStore | None:
    return store if isinstance(store, ScoreStore) or store is None else ScoreStore(Path(store))
