"""Where a model comes from: its own files, the base of an adapter, what identifies all of it.

Nothing is loaded here, and from the Hub nothing but metadata is fetched.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, PretrainedConfig
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from atlantis.disk import digest_file
from atlantis.errors import ModelError
from atlantis.models.settings import LoadingConfig

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_HASHED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", "*/*.jinja")
"""What decides a model's numbers besides its weights."""
_TOKENIZER = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""Without any of these, transformers makes up a tokenizer with no vocabulary."""


class Repository(NamedTuple):
    """A folder, or a repository on the Hub."""

    name: str
    revision: str | None

    @property
    def folder(self) -> Path | None:
        """The folder; None for a repository on the Hub.

        Raises:
            ModelError: There is no such folder.
        """
        folder = Path(self.name)
        if folder.is_dir():
            return folder
        if self.name.startswith((".", "/", "~")):
            raise ModelError(f"{self.name}: no such folder")
        return None


class Source(NamedTuple):
    """The parts of a model."""

    base: Repository
    adapter: Repository | None
    tokenizer: Repository


def locate(name: str, config: LoadingConfig) -> Source:
    """Find the parts of a model, and refuse what is not whole, from file names alone.

    The tokenizer is the model's. One that is itself an adapter may bring its own.

    Raises:
        ModelError: A part is not there or not usable, or an option does not fit it.
    """
    given = Repository(name, config.revision)
    if given.folder is not None and config.revision is not None:
        raise ModelError(f"{name}: a folder has no revision {config.revision!r}; leave it out")
    own = _adapter_config(given)
    if own is None or _has_weights(given.folder):
        adapter = None if config.adapter is None else Repository(config.adapter, None)
        _check_adapter(adapter)
        if own is not None:
            raise ModelError(f"{name}: holds a model and an adapter; move the adapter out of it")
        _check_model(given.folder, needs_tokenizer=True)
        return Source(given, adapter, given)
    if config.adapter is not None:
        raise ModelError(f"{name}: is an adapter itself; give the model that {config.adapter} fits")
    _check_adapter(given)
    base = _base(given, own)
    has_tokenizer = given.folder is not None and _has_tokenizer(given.folder)
    _check_model(base.folder, needs_tokenizer=not has_tokenizer)
    return Source(base, given, given if has_tokenizer else base)


def read_config(name: str, config: LoadingConfig) -> PretrainedConfig:
    """The configuration of a model; of an adapter's base.

    Raises:
        ModelError: There is no such model, or its configuration cannot be read.
    """
    return _read_config(locate(name, config).base, config)


def fingerprint_source(name: str, config: LoadingConfig) -> dict[str, str]:
    """What identifies a model: file hashes for folders, commits for Hub names.

    Raises:
        ModelError: There is no such model.
    """
    base, adapter, tokenizer = locate(name, config)
    found = _fingerprint(base)
    if adapter is not None:
        found |= {f"adapter/{key}": value for key, value in _fingerprint(adapter).items()}
    if tokenizer == adapter:
        found["tokenizer"] = "adapter"
    if config.trust_remote_code:
        found["trust_remote_code"] = "true"
    return found


def first_line(error: Exception) -> str:
    """The first line of a message from a library."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _base(adapter: Repository, fields: dict[str, Any]) -> Repository:
    name = fields.get("base_model_name_or_path")
    if not name:
        raise ModelError(f"{adapter.name}: adapter_config.json names no base_model_name_or_path")
    base = Repository(str(name), fields.get("revision"))
    try:
        is_adapter = _adapter_config(base) is not None and not _has_weights(base.folder)
    except ModelError as error:
        raise ModelError(f"{adapter.name}: its base model {error}") from None
    if is_adapter:
        raise ModelError(f"{adapter.name}: its base model {name} is an adapter too; merge that one")
    return base if base.folder is None else base._replace(revision=None)


def _adapter_config(repository: Repository) -> dict[str, Any] | None:
    """The adapter's configuration; None where the repository is no adapter."""
    if repository.folder is None and Path(repository.name).is_file():
        raise ModelError(f"{repository.name}: a file, not a folder with a model")
    try:
        path = find_adapter_config_file(repository.name, revision=repository.revision)
        return None if path is None else json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _not_found(repository, error) from None


def _check_adapter(adapter: Repository | None) -> None:
    if adapter is None:
        return
    if adapter.folder is None:
        if _adapter_config(adapter) is None:
            raise ModelError(f"{adapter.name}: neither a folder nor a Hub name of an adapter")
        return
    if not (adapter.folder / "adapter_config.json").is_file():
        raise ModelError(f"{adapter.name}: not an adapter, it has no adapter_config.json")
    if not (adapter.folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{adapter.name}: not a usable adapter, it has no {ADAPTER_WEIGHTS}")


def _check_model(folder: Path | None, *, needs_tokenizer: bool) -> None:
    if folder is None:
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: not a model, it has no config.json")
    _weights(folder)
    if needs_tokenizer and not _has_tokenizer(folder):
        raise ModelError(f"{folder}: not a usable model, it has no tokenizer; save it there too")


def _has_tokenizer(folder: Path) -> bool:
    return any(path for pattern in _TOKENIZER for path in folder.glob(pattern))


def _has_weights(folder: Path | None) -> bool:
    return folder is not None and any(folder.glob("model*.safetensors*"))


def _weights(folder: Path) -> list[Path]:
    """The files that the weights are read from: one, or the shards that an index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickled = any(folder.glob("*.bin"))
        reason = "; pickled ones (*.bin) are never read, convert them" if pickled else ""
        raise ModelError(f"{folder}: not a usable model, it has no *.safetensors weights{reason}")
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index}: not an index of weights") from None
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: not a usable model, it lacks {name} of its weights")
    return [folder / name for name in names]


def _read_config(base: Repository, config: LoadingConfig) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            base.name, revision=base.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{base.name}: comes with Python code of its own; read it, then set "
                "trust_remote_code to run it"
            ) from None
        raise _not_found(base, error) from None


def _not_found(repository: Repository, error: Exception) -> ModelError:
    what = (
        repository.name if repository.revision is None else "{} at revision {}".format(*repository)
    )
    return ModelError(
        f"{what}: neither a folder with a model nor a model on the Hub ({first_line(error)})"
    )


def _fingerprint(repository: Repository) -> dict[str, str]:
    folder = repository.folder
    if folder is None:
        return {"hub": repository.name, "commit": _commit(repository)}
    return {str(path.relative_to(folder)): _digest(path) for path in _hashed(folder)}


def _hashed(folder: Path) -> Iterator[Path]:
    is_adapter = not (folder / "config.json").is_file() or not _has_weights(folder)
    weights = [folder / ADAPTER_WEIGHTS] if is_adapter else _weights(folder)
    others = {path for pattern in _HASHED for path in folder.glob(pattern)}
    return iter(sorted(others.union(weights)))


def _commit(repository: Repository) -> str:
    """The commit that a branch, a tag or nothing at all means now."""
    for name in ("config.json", "adapter_config.json"):
        path: Any = _metadata_file(repository, name)
        if path is not None:
            return Path(path).parent.name  # .../snapshots/<commit>/config.json
    raise ModelError(f"{repository.name}: neither a model nor an adapter on the Hub")


def _metadata_file(repository: Repository, name: str) -> str | None:
    try:
        return cached_file(
            repository.name,
            name,
            revision=repository.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    except (OSError, ValueError) as error:
        raise _not_found(repository, error) from None


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_once(path.resolve(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_once(path: Path, size: int, mtime_ns: int) -> str:
    """The hash of a file, computed once in this process for a size and a time."""
    return digest_file(path)
