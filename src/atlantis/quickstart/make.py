"""Make the quickstart's data and models in a folder, once."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from atlantis.errors import StoreError
from atlantis.quickstart.corpus import LABELS, CorpusSizes, write_corpus
from atlantis.quickstart.family import FamilyConfig, write_family

_MADE = "made.json"


@dataclass(frozen=True, slots=True)
class QuickstartConfig:
    """What the quickstart is made of."""

    sizes: CorpusSizes = field(default_factory=CorpusSizes)
    family: FamilyConfig = field(default_factory=FamilyConfig)


def make_quickstart(folder: Path, *, seed: int = 0, config: QuickstartConfig | None = None) -> None:
    """Write the corpus, ``large/``, ``small/`` and, last, ``made.json`` to `folder`.

    Does nothing where all of it stands already, made with the same settings; replaces it where it
    was made with others. A kill at any moment leaves `folder` absent or complete. The same seed
    and number of torch threads give the same bytes.

    Raises:
        StoreError: If `folder` holds something that this function did not make.
    """
    config = config or QuickstartConfig()
    settings = _settings(seed, config)
    if _made_with(folder) == settings:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_corpus(partial, seed=seed, sizes=config.sizes)
    sentences = (partial / "sentences.txt").read_text("utf-8").splitlines()
    write_family(partial, sentences=sentences, labels=LABELS, config=config.family, seed=seed)
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


def _settings(seed: int, config: QuickstartConfig) -> dict[str, Any]:
    """All that decides the bytes of the result."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return {
        "seed": seed,
        "config": asdict(config),
        "code": hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "num_threads": torch.get_num_threads(),
    }
