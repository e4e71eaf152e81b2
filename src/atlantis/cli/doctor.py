"""``atlantis doctor``: what this machine can run."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from atlantis.cli.exits import EXIT_RESUMABLE
from atlantis.cli.options import Json
from atlantis.cli.output import put, put_json, put_table

_DISTRIBUTION = "atlantis-sft"
_DEVELOPMENT = "dev"
_GIB = 2**30
_STYLES = {"ok": "green", "absent": "dim", "missing": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Literal["ok", "absent", "missing"]
    """``absent`` can be done without, ``missing`` cannot."""
    found: str


def doctor(as_json: Json = False) -> None:
    """What this machine can run.

    Versions, GPU, extras, disk and memory. The exit code is 1 if something needed is missing.
    """
    checks = [_python(), *_packages(), *_torch(), *_machine()]
    missing = [check.name for check in checks if check.status == "missing"]
    if as_json:
        put_json({"ok": not missing, "checks": [asdict(check) for check in checks]})
    else:
        put_table(_table(checks))
        put(f"missing: {', '.join(missing)}" if missing else "ready")
    if missing:
        raise typer.Exit(EXIT_RESUMABLE)


def _python() -> Check:
    from packaging.specifiers import SpecifierSet

    wanted = str(metadata.metadata(_DISTRIBUTION)["Requires-Python"])
    fits = platform.python_version() in SpecifierSet(wanted)
    return Check(
        "python",
        "ok" if fits else "missing",
        f"{platform.python_version()} ({wanted} needed) at {sys.executable}",
    )


def _packages() -> Iterator[Check]:
    """Every requirement of the distribution, those of its extras marked."""
    from packaging.requirements import Requirement

    for line in metadata.requires(_DISTRIBUTION) or ():
        need = Requirement(line)
        extra = _extra_of(need)
        if extra == _DEVELOPMENT:
            continue
        yield _package(need.name, need.specifier, extra)


def _extra_of(need: Any) -> str | None:
    """The extra that a requirement belongs to, from its marker."""
    found = re.search(r'extra == "([^"]+)"', str(need.marker))
    return found[1] if found else None


def _package(name: str, wanted: Any, extra: str | None) -> Check:
    title = name if extra is None else f"{name} (extra {extra})"
    lacking = "missing" if extra is None else "absent"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(title, lacking, f"not installed ({wanted or 'any version'} needed)")
    if not wanted.contains(version, prereleases=True):
        return Check(title, lacking, f"{version} is outside the supported {wanted}")
    return Check(title, "ok", f"{version}{f' ({wanted} needed)' if wanted else ''}")


def _torch() -> Iterator[Check]:
    """Whether torch starts, and which accelerators it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch starts", "missing", str(error).splitlines()[0])
        return
    yield Check("CPU threads", "ok", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    if not torch.cuda.is_available():
        yield Check("GPU", "absent", "no CUDA device; models run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        size = f"{device.total_memory / _GIB:.0f} GiB"
        yield Check(f"GPU {index}", "ok", f"{device.name}, {size}, CUDA {torch.version.cuda}")
    bf16 = torch.cuda.is_bf16_supported()
    yield Check("bfloat16", "ok" if bf16 else "absent", "native" if bf16 else "not on this GPU")


def _machine() -> Iterator[Check]:
    disk = shutil.disk_usage(Path.cwd())
    yield Check("disk", "ok", f"{disk.free / _GIB:.0f} GiB free of {disk.total / _GIB:.0f} here")
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    yield Check(
        "memory", "ok", f"{_available() or total / _GIB:.0f} GiB free of {total / _GIB:.0f}"
    )


def _available() -> float | None:
    """Memory that new work can have, in GiB, where the system says so (Linux)."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / _GIB


def _table(checks: list[Check]) -> Table:
    table = Table(show_header=False)
    for check in checks:
        style = _STYLES[check.status]
        table.add_row(Text(check.name), Text(check.status, style), Text(check.found))
    return table
