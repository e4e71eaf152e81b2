"""A command's result folder: made once, whole or not at all, and only from one set of inputs."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atlantis.disk import exclusive, read_json, sync_folder, write_json
from atlantis.errors import StoreError
from atlantis.store import MANIFEST, check_fingerprint

_LOCK = ".lock"


def make_once(
    out: Path,
    fingerprint: Mapping[str, Any],
    work: Callable[[Path], None],
    *,
    resumable: bool = False,
) -> bool:
    """Let ``work`` fill the folder ``out``, unless the same result is there already.

    It is filled beside its place, as ``out.partial``, and renamed when it is whole.

    Args:
        out: Where the result goes.
        fingerprint: All that the result depends on, JSON; kept in ``out/manifest.json``.
        work: Fills the folder that it is given.
        resumable: Whether ``work`` goes on from what a killed run left in the folder, after it has
            seen to it that it is the same work.

    Returns:
        Whether anything had to be done.

    Raises:
        StoreError: ``out`` was made from something else, or holds other files.
        ResumableError: Another process is making the same folder.
    """
    if _is_made(out, fingerprint):
        return False
    partial = out.with_name(f"{out.name}.partial")
    with exclusive(partial):
        if not resumable:
            _clear(partial)
        work(partial)
        write_json(partial / MANIFEST, {"complete": True, "fingerprint": dict(fingerprint)})
        partial.rename(out)
        sync_folder(out.parent)
        (out / _LOCK).unlink()
    return True


def _is_made(out: Path, fingerprint: Mapping[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).is_file():
        raise StoreError(f"{out} holds other files; choose an empty folder")
    manifest = read_json(out / MANIFEST)
    check_fingerprint(out, manifest.get("fingerprint", {}), fingerprint)
    return True


def _clear(folder: Path) -> None:
    """Remove what a killed run left, all but the lock that is held."""
    for path in folder.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
