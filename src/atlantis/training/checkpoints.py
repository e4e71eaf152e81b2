"""Checkpoint folders: whole, checked before they are used, and never of another training.

A checkpoint is written under ``.tmp-checkpoints``, listed in its ``manifest.json`` (the size and
SHA-256 of every file, and what the training depends on), synced to disk and renamed to
``checkpoint-N``. Only one whose every byte is as listed is ever read again.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlantis.disk import digest_file, digest_json, read_json, sync_folder, write_json
from atlantis.errors import DataError, StoreError
from atlantis.store import MANIFEST, check_fingerprint

NUM_KEPT = 2
"""The newest ones stay: an older one is there when the newest turns out to be damaged."""

_log = logging.getLogger(__name__)


def staging(out: Path) -> Path:
    """Where checkpoints are written before they are whole, and go before they are deleted."""
    return out / ".tmp-checkpoints"


def seal(written: Path, out: Path, fingerprint: Mapping[str, Any]) -> Path:
    """Give a written checkpoint its name in ``out``, and delete those that it replaces.

    Args:
        written: ``checkpoint-N`` in the staging folder, with all its files.
        out: Folder of the training.
        fingerprint: All that the training depends on, JSON.

    Raises:
        OSError: The disk is full or fails; no folder has got its name.
    """
    content = {"fingerprint": dict(fingerprint), "files": _listed(written)}
    for name in content["files"]:
        _sync_file(written / name)
    write_json(written / MANIFEST, content | {"sha256": digest_json(content)})
    for folder in (path for path in written.rglob("*") if path.is_dir()):
        sync_folder(folder)
    target = out / written.name
    if target.exists():  # it was damaged, or the training had not come back to its step
        _discard(target, out)
    written.rename(target)
    sync_folder(out)
    for outdated in _outdated(out, target):
        _discard(outdated, out)
    return target


def newest(out: Path, fingerprint: Mapping[str, Any]) -> Path | None:
    """The newest checkpoint that is whole; None where there is none. Says what it passes over.

    Raises:
        StoreError: It belongs to another training; the message names the field.
    """
    for checkpoint in reversed(_checkpoints(out)):
        reason = damage(checkpoint)
        if reason is None:
            check_fingerprint(checkpoint, _manifest(checkpoint)["fingerprint"], fingerprint)
            return checkpoint
        _log.warning("%s is skipped: %s", checkpoint, reason)
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None when every file is as its manifest says."""
    try:
        listed: dict[str, Any] = _manifest(checkpoint)["files"]
    except (DataError, StoreError) as error:
        return str(error)
    there = {name for name in _names(checkpoint) if name != MANIFEST}
    for name in sorted(listed.keys() | there):
        if name not in there:
            return f"{name} is missing"
        if name not in listed:
            return f"{name} is not in its {MANIFEST}"
        path, size = checkpoint / name, listed[name]["size"]
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if digest_file(path) != listed[name]["sha256"]:
            return f"{name} has another SHA-256 than when it was written"
    return None


def clear(out: Path) -> None:
    """Delete what a killed training left in its folder, all but checkpoints and hidden files."""
    shutil.rmtree(staging(out), ignore_errors=True)
    for path in out.iterdir():
        if path.name.startswith(".") or path in _checkpoints(out):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove(out: Path) -> None:
    """Delete all checkpoints of a training."""
    for checkpoint in _checkpoints(out):
        _discard(checkpoint, out)
    shutil.rmtree(staging(out), ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Make the files of a folder survive a power loss."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            _sync_file(path)
    sync_folder(folder)


def _checkpoints(out: Path) -> list[Path]:
    """Folders called ``checkpoint-N``, by step."""
    found = [path for path in out.glob("checkpoint-*") if _step(path) is not None]
    return sorted(found, key=lambda path: _step(path) or 0)


def _step(checkpoint: Path) -> int | None:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdecimal() else None


def _outdated(out: Path, current: Path) -> list[Path]:
    """All but the newest up to the current one; later ones were skipped, so they are damaged."""
    checkpoints = _checkpoints(out)
    end = checkpoints.index(current) + 1
    return checkpoints[: max(0, end - NUM_KEPT)] + checkpoints[end:]


def _discard(checkpoint: Path, out: Path) -> None:
    """Delete a checkpoint; a kill in the middle leaves no folder under its name."""
    bin_ = staging(out) / "deleted"
    shutil.rmtree(bin_, ignore_errors=True)
    bin_.parent.mkdir(exist_ok=True)
    checkpoint.rename(bin_)
    shutil.rmtree(bin_)


def _names(folder: Path) -> list[str]:
    """Paths of all files, relative."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def _listed(folder: Path) -> dict[str, Any]:
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": digest_file(folder / name)}
        for name in _names(folder)
    }


def _manifest(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
        DataError: There is no manifest, or it is not JSON.
        StoreError: Its content is not what was written.
    """
    manifest: Any = read_json(checkpoint / MANIFEST)
    if not isinstance(manifest, dict):
        raise StoreError(f"{MANIFEST} is not one")
    content = {name: manifest.get(name) for name in ("fingerprint", "files")}
    if manifest.get("sha256") != digest_json(content):
        raise StoreError(f"{MANIFEST} has another content than when it was written")
    return content


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
