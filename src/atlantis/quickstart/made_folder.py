"""A folder that is made once, whole or not at all."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from atlantis.errors import StoreError

_MADE = "made.json"


def make_once(
    folder: Path, write: Callable[[Path], None], *, seed: int, config: dict[str, Any]
) -> None:
    """Let `write` fill a folder, and name it `folder` with ``made.json`` in it when it is whole.

    Does nothing where it stands already, made with the same settings; replaces it where it was
    made with others. A kill at any moment leaves `folder` absent or complete.

    Raises:
        StoreError: `folder` holds something that this function did not make.
    """
    settings = _settings(seed, config)
    if _made_with(folder) == settings:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    (partial / _MADE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _made_with(folder: Path) -> dict[str, Any] | None:
    """The settings that `folder` was made with; None where there is nothing yet."""
    if not folder.exists():
        return None
    if not (folder / _MADE).is_file():
        raise StoreError(
            f"{folder} exists but was not made by the quickstart (it has no {_MADE}); "
            "name another folder, or remove it"
        )
    try:
        return json.loads((folder / _MADE).read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise StoreError(f"{folder / _MADE} is damaged ({error}); remove {folder}") from error


def _settings(seed: int, config: dict[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of the result."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return {
        "seed": seed,
        "config": config,
        "code": hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "num_threads": torch.get_num_threads(),
    }
