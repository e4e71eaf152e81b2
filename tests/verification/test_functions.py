"""A user's own verifier: what it may do wrong costs only its own example."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from atlantis.errors import ConfigError
from atlantis.verification.config import FunctionConfig, open_verifier

MODULE = """
import os, subprocess, sys, time

class Strict:
    @staticmethod
    def judge(prompt, completion, gold):
        return completion == gold

def judge(*, prompt, completion, gold):
    if completion == "nothing":
        return None
    if completion == "raise":
        raise ValueError("no good")
    if completion == "hang":
        time.sleep(1000)
    if completion == "hang deaf":
        __import__("signal").pthread_sigmask(0, range(1, 32))
        while True: pass
    if completion == "text":
        return "yes"
    if completion == "one":
        return 1
    if completion == "exit":
        sys.exit(0)
    if completion == "die":
        os._exit(3)
    if completion == "eat":
        return bytearray(8 << 30) is None
    if completion == "child":
        child = subprocess.Popen(["sleep", "1000"])
        open("child.pid", "w").write(str(child.pid))
        time.sleep(1000)
    if completion == "print":
        print("chatter")
    return prompt == "Solve it." and completion == gold

not_a_function = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_verifier.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(**changes):
    settings = {"function": "my_verifier:judge", "num_workers": 1, "deadline_seconds": 2}
    return open_verifier(FunctionConfig(**settings | changes))


def test_true_false_and_none(module, claim):
    with opened() as verifier:
        assert re.fullmatch("function my_verifier:judge [0-9a-f]{12}", verifier.name)
        verifier.check_golds({"a": "anything"})
        verdicts = verifier.verify(
            [claim("yes", "yes"), claim("yes", "no"), claim("yes", "nothing")]
        )
    assert [v.status for v in verdicts] == ["correct", "wrong", "no_answer"]


def test_the_name_changes_with_the_source_of_the_module(module, monkeypatch):
    def name(function):
        return open_verifier(FunctionConfig(function=function)).name

    package = module / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    inner = package / "inner.py"
    inner.write_text("def judge(**_): return True\n")
    whole, before = name("my_package:judge"), name("my_package.inner:judge")
    assert name("my_package.inner:judge") == before
    inner.write_text("def judge(**_): return None\n")
    assert name("my_package.inner:judge") != before
    assert name("my_package:judge") == whole
    assert "my_package" not in sys.modules


@pytest.mark.parametrize("module_name", ["no_such", "no.such", "math", "os.path", "__main__"])
def test_a_module_without_a_file_has_a_name_too(module_name):
    assert open_verifier(FunctionConfig(function=f"{module_name}:f")).name


def test_a_method_works_too(module, claim):
    with opened(function="my_verifier:Strict.judge") as verifier:
        assert verifier.verify([claim("yes", "yes")])[0].status == "correct"


def test_no_answer_in_a_completion_that_was_cut_off_is_truncated(module, claim):
    with opened() as verifier:
        [verdict] = verifier.verify([claim("yes", "nothing", finish_reason="length")])
    assert verdict.status == "truncated"


@pytest.mark.parametrize(
    ("completion", "status", "detail"),
    [
        ("raise", "error", r"ValueError: no good \(my_verifier.py:\d+\)"),
        ("hang", "timeout", "took longer than 2 s"),
        ("hang deaf", "timeout", "took longer than 2 s"),
        ("text", "error", "returned 'yes'; return True, False or None"),
        ("one", "error", "returned 1; return True, False or None"),
        ("exit", "error", "SystemExit"),
        ("die", "error", "ended with exit code 3"),
        ("eat", "error", "out of memory"),
    ],
)
def test_misbehaviour_is_reported_with_the_id_and_costs_only_its_example(
    module, claim, completion, status, detail
):
    claims = [
        claim("yes", "yes", example_id="before"),
        claim("yes", completion, example_id="the bad one"),
        claim("yes", "yes", example_id="after"),
        claim("yes", "no", example_id="later"),
    ]
    with opened() as verifier:
        verdicts = verifier.verify(claims)
    assert [v.status for v in verdicts] == ["correct", status, "correct", "wrong"]
    assert verdicts[1].detail.startswith("example 'the bad one': my_verifier:judge ")
    assert re.search(detail, verdicts[1].detail)


def test_a_large_claim_goes_through(module, claim):
    text = "x" * 5_000_000
    with opened(deadline_seconds=30) as verifier:
        assert verifier.verify([claim(text, text)])[0].status == "correct"


def test_what_a_function_prints_does_not_reach_our_output(module, claim, capfd):
    with opened() as verifier:
        verifier.verify([claim("print", "print")])
    assert capfd.readouterr().out == ""


def test_what_a_hanging_function_started_ends_with_it(module, claim):
    with opened() as verifier:
        assert verifier.verify([claim("yes", "child")])[0].status == "timeout"
        child = int((module / "child.pid").read_text())
    assert is_gone(child)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module:judge", "No module named 'no_such_module'"),
        ("my_verifier:no_such_function", "no_such_function"),
        ("my_verifier:not_a_function", "cannot be called"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused_before_anything_runs(
    module, function, message
):
    with pytest.raises(ConfigError, match=f"{function}.*{message}"), opened(function=function):
        pass


def test_a_function_is_written_as_module_and_name():
    with pytest.raises(ValueError, match="function"):
        FunctionConfig(function="my_verifier.judge")


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from atlantis.verification.claims import Claim
from atlantis.verification.config import FunctionConfig, open_verifier
# No guard of the main module: workers must not import it.
config = FunctionConfig(function="my_verifier:judge", num_workers=2, deadline_seconds=600)
with open_verifier(config) as verifier:
    workers = verifier._pool._workers
    print(workers[0].process.pid, flush=True)
    verifier.verify([Claim("a", "", "yes", {completion!r})])
"""


def started(module, completion):
    script = module / "script.py"
    script.write_text(SCRIPT.format(folder=str(module), completion=completion))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


def is_gone(pid, *, patience=10.0):
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_ends_it_at_once_and_leaves_no_process(module):
    process, worker = started(module, "hang")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in said
    assert is_gone(worker)


def test_a_worker_without_work_ends_when_its_owner_is_killed(module):
    process, worker = started(module, "yes")
    process.kill()
    process.communicate(timeout=20)
    assert is_gone(worker)


def test_a_script_without_a_guard_of_its_main_module_ends_by_itself(module):
    process, worker = started(module, "yes")
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert is_gone(worker)
