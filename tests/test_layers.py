"""The staircase of DESIGN.md: a module imports only from lower stairs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import atlantis

ROOT = Path(atlantis.__file__).parent
STAIRS = [
    ["errors", "recipes"],
    ["progress", "records", "numerics", "validation", "disk", "launch", "endpoint"],
    ["journal", "verification"],
    ["store"],
    ["stages", "data"],
    ["models", "quickstart"],
    ["scoring", "generation"],
    ["weighting"],
    ["training", "evaluation", "selection", "rewriting"],
    ["report", "api"],
    ["config"],
    ["pipeline"],
    ["cli"],
]
HEIGHT = {name: height for height, stair in enumerate(STAIRS) for name in stair}
MODULES = sorted(ROOT.rglob("*.py"))


def owner_of(source):
    return source.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_packages(source):
    """Parts of atlantis that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = {name.split(".")[1] for name in names if name.startswith("atlantis.")}
    return parts - set(atlantis.__all__)  # `from atlantis import weigh`: the package itself


def third_party(source, *, on_import=False):
    """Libraries that a module names anywhere, or loads when it is imported."""
    names, tree = set(), ast.parse(source.read_text())
    for node in tree.body if on_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_every_part_stands_on_a_stair():
    assert {owner_of(source) for source in MODULES} - {"__init__"} == set(HEIGHT)


def test_no_module_imports_from_its_own_or_a_higher_stair():
    climbs = [
        f"{source.relative_to(ROOT)} imports {target}"
        for source in MODULES
        if (owner := owner_of(source)) in HEIGHT
        for target in imported_packages(source)
        if target != owner and HEIGHT[target] >= HEIGHT[owner]
    ]
    assert not climbs


@pytest.mark.parametrize(
    "line",
    [
        "import atlantis.weighting.stage",
        "from atlantis.weighting import stage",
        "from atlantis import weighting",
        "def f():\n    from atlantis.weighting.stage import weigh",
    ],
)
def test_every_form_of_import_is_seen(tmp_path, line):
    source = tmp_path / "module.py"
    source.write_text(line)
    assert imported_packages(source) == {"weighting"}


def test_only_the_package_itself_imports_from_the_package_itself():
    # Its names come from everywhere: a module that took one would stand on every stair.
    for source in MODULES:
        if owner_of(source) in ("__init__", "cli"):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "atlantis":
                assert not {alias.name for alias in node.names} & set(atlantis.__all__), source


def test_importing_the_package_loads_no_library_of_models():
    command = "import sys, atlantis; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "trl", "datasets"} & set(loaded)


def test_numerics_can_be_read_and_used_alone():
    allowed = {"__future__", "math", "typing", "collections", "numpy", "scipy", "torch"}
    # arviz-stats: the Pareto fit; jaxtyping: shapes in annotations.
    allowed |= {"arviz_stats", "jaxtyping", "atlantis"}
    for source in (ROOT / "numerics").glob("*.py"):
        assert third_party(source) <= allowed, source
        assert imported_packages(source) <= {"numerics"}


def test_worker_processes_of_verification_load_next_to_nothing():
    # A worker is started anew after each answer that hangs: torch would cost it seconds and memory.
    command = "import sys, atlantis.verification.worker as w; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "pydantic", "pyarrow", "sympy", "math_verify"} & set(loaded)


def test_math_verify_is_named_in_one_module_only():
    graders = ROOT / "verification" / "graders.py"
    named = {source for source in MODULES if third_party(source) & {"math_verify", "sympy"}}
    assert named == {graders}
    assert "math_verify" not in third_party(graders, on_import=True)


@pytest.mark.parametrize("part", ["data", "weighting", "report", "verification"])
def test_light_parts_do_not_load_models_or_train(part):
    for source in (ROOT / part).glob("*.py"):
        heavy = {"trl", "peft", "accelerate", "datasets"}
        assert not third_party(source, on_import=True) & heavy, source


def test_one_module_speaks_http():
    clients = {"urllib", "http", "httpx", "requests", "aiohttp", "openai"}
    speakers = [source.name for source in MODULES if third_party(source) & clients]
    assert speakers == ["endpoint.py"]


@pytest.mark.parametrize("source", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_imports(source):
    parts = source.relative_to(ROOT).with_suffix("").parts
    name = ".".join(["atlantis", *(part for part in parts if part != "__init__")])
    assert importlib.import_module(name).__doc__


def test_no_module_is_a_drawer_for_odds_and_ends():
    names = {source.name for source in MODULES}
    assert not names & {"utils.py", "util.py", "common.py", "helpers.py", "base.py", "misc.py"}
