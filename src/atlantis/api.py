"""``score`` and ``weigh`` as Python functions: what the commands of the same name do."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atlantis.data.formats import read_prompt_completion
from atlantis.errors import ConfigError, DataError
from atlantis.records import Example
from atlantis.store import ScoreStore, exclusive
from atlantis.validation import validated

if TYPE_CHECKING:
    from atlantis.weighting.stage import Weights

_PathLike = str | os.PathLike[str]


def score(
    data: _PathLike | Sequence[Example],
    *,
    model: str,
    out: _PathLike,
    max_length: int = 1024,
    token_budget: int = 4096,
    score_end_of_turn: bool = False,
    dtype: str = "float32",
    device: str = "auto",
) -> ScoreStore:
    """Log-probability of every completion under a model, on disk; goes on after a kill.

    Args:
        data: A JSONL file with ``prompt`` and ``completion``, or examples with unique ids.
        model: Folder or Hub name of a causal language model.
        out: Folder of the score store. One that holds the same scores already is left as it is.
        max_length: Most tokens of prompt and completion; a longer row gets the status
            ``too_long`` and no score.
        token_budget: Padded tokens of one forward pass.
        score_end_of_turn: Whether the end-of-turn token counts.
        dtype: ``float32``, ``bfloat16`` or ``float16``; log-probabilities are float32 in any case.
        device: ``auto`` takes a GPU where there is one; or a torch device.

    Returns:
        The complete store.

    Raises:
        DataError: The data are missing or malformed.
        ModelError: There is no such model, or it is no causal language model.
        StoreError: ``out`` holds scores of another model, other data or other settings.
        ResumableError: Another process is writing there.
    """
    examples = _examples(data)
    from atlantis.models.loading import LoadingConfig, check_decoder_only
    from atlantis.scoring import stage as scoring

    config = validated(
        scoring.ScoringConfig,
        {
            "max_length": max_length,
            "token_budget": token_budget,
            "score_end_of_turn": score_end_of_turn,
        },
        where="score",
    )
    loading = validated(LoadingConfig, {"dtype": dtype, "device": device}, where="score")
    check_decoder_only(model)
    with exclusive(Path(out)):
        return scoring.run(examples, model, Path(out), config=config, loading=loading)


def weigh(
    *,
    large: ScoreStore | _PathLike | None = None,
    small: ScoreStore | _PathLike | None = None,
    reference: ScoreStore | _PathLike | None = None,
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
        config=validated(weighting.WeightingConfig, settings, where="weigh"),
        normalise_for=_check_normalise_for(normalise_for),
        labels=labels,
    )


def _examples(data: _PathLike | Sequence[Example]) -> Sequence[Example]:
    if isinstance(data, str | os.PathLike):
        return read_prompt_completion(Path(data)).rows
    twice = [name for name, count in Counter(row.example_id for row in data).items() if count > 1]
    if twice:
        raise DataError(f"id {twice[0]!r} occurs twice; give every example an id of its own")
    for row in data:
        if not row.prompt.strip() or not row.completion.strip():
            raise DataError(f"example {row.example_id!r} has an empty prompt or completion")
    if not data:
        raise DataError("no examples; give at least one")
    return data


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
