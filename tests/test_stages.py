"""Cached stages: digests, kills between and inside stages, partial folders, resuming."""

import itertools
import json
import shutil

import pytest

from atlantis.stages import DONE, Stage, in_order


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code may catch it."""


class Diary:
    """Makes stages that note when they work, and that can be killed on the way."""

    def __init__(self, root):
        self.root = root
        self.worked = []
        self.announced = []
        self.killed_in = None

    def stage(self, name, *inputs, value=0, resumable=False, version="v"):
        def work(folder):
            self.worked.append(name)
            for number in range(3):
                if self.killed_in == (name, number):
                    raise Killed
                with (folder / f"{number}.txt").open("a") as file:
                    file.write(f"{name} {value}\n")
                for needed in inputs:
                    assert needed.is_done
                    assert len(list(needed.folder.glob("*.txt"))) == 3

        return Stage(self.root, name, {"value": value, "version": version}, inputs, work, resumable)

    def announce(self, stage):
        self.announced.append(stage.name)

    def make(self, stage):
        self.worked.clear()
        self.announced.clear()
        folder = stage.make(self.announce)
        assert self.announced == self.worked
        return folder


@pytest.fixture
def diary(tmp_path):
    return Diary(tmp_path / "stages")


def chain(diary, **values):
    """Data, two stages that read it, and one that reads both."""
    data = diary.stage("data", value=values.get("data", 0))
    left = diary.stage("left", data, value=values.get("left", 0))
    right = diary.stage("right", data, value=values.get("right", 0))
    return diary.stage("end", left, right, value=values.get("end", 0))


def content(root):
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def test_a_stage_makes_what_it_needs_first_and_everything_once(diary):
    folder = diary.make(chain(diary))
    assert diary.worked == ["data", "left", "right", "end"]
    assert (folder / "2.txt").read_text() == "end 0\n"
    assert not list(diary.root.glob("*.partial"))


def test_what_is_there_is_not_made_again(diary):
    first = diary.make(chain(diary))
    assert diary.make(chain(diary)) == first
    assert diary.worked == []


def test_a_finished_stage_does_not_need_its_inputs(diary):
    end = chain(diary)
    diary.make(end)
    for stage in end.inputs:
        shutil.rmtree(stage.folder)
    diary.make(chain(diary))
    assert diary.worked == []


@pytest.mark.parametrize(
    ("changed", "made"),
    [
        ("data", ["data", "left", "right", "end"]),
        ("left", ["left", "end"]),
        ("right", ["right", "end"]),
        ("end", ["end"]),
    ],
)
def test_a_changed_setting_makes_again_what_depends_on_it(diary, changed, made):
    old = diary.make(chain(diary))
    new = diary.make(chain(diary, **{changed: 1}))
    assert diary.worked == made
    assert new != old
    assert old.is_dir()
    diary.make(chain(diary))
    assert diary.worked == []  # going back costs nothing


def test_the_digest_depends_on_name_settings_and_inputs_and_nothing_else(diary):
    stages = [
        diary.stage("a"),
        diary.stage("b"),
        diary.stage("a", value=1),
        diary.stage("a", value="1"),
        diary.stage("a", version="w"),
        diary.stage("a", diary.stage("b")),
        diary.stage("a", diary.stage("b"), diary.stage("c")),
        diary.stage("a", diary.stage("c"), diary.stage("b")),
    ]
    assert len({stage.digest for stage in stages}) == len(stages)
    same = Stage(diary.root / "elsewhere", "a", {"version": "v", "value": 0}, (), print, True)
    assert same.digest == stages[0].digest


def test_settings_that_are_no_json_are_refused(diary):
    with pytest.raises(ValueError, match="JSON"):
        _ = diary.stage("a", value=float("nan")).digest


@pytest.mark.parametrize(
    "moment", list(itertools.product(["data", "left", "right", "end"], range(3)))
)
def test_a_kill_at_any_moment_leaves_the_result_of_a_run_without_one(diary, tmp_path, moment):
    undisturbed = Diary(tmp_path / "undisturbed")
    undisturbed.make(chain(undisturbed))
    diary.killed_in = moment
    with pytest.raises(Killed):
        diary.make(chain(diary))
    done_before = {path.parent.name for path in diary.root.glob(f"*/{DONE}")}
    assert not any(name.endswith(".partial") for name in done_before)
    diary.killed_in = None
    diary.make(chain(diary))
    names = ["data", "left", "right", "end"]
    assert diary.worked == names[names.index(moment[0]) :]
    assert content(diary.root) == content(undisturbed.root)


def test_a_kill_before_the_rename_costs_the_stage_and_no_more(diary, monkeypatch):
    end = chain(diary)
    diary.make(end)
    end.folder.rename(end.folder.with_name(end.folder.name + ".partial"))  # stage.json is inside
    assert not end.is_done
    diary.make(chain(diary))
    assert diary.worked == ["end"]
    assert (end.folder / "0.txt").read_text() == "end 0\n"


def test_what_a_killed_run_left_is_thrown_away(diary):
    stage = diary.stage("a")
    partial = stage.folder.with_name(stage.folder.name + ".partial")
    partial.mkdir(parents=True)
    (partial / "leftover.txt").write_text("old")
    (partial / "0.txt").write_text("half")
    folder = diary.make(stage)
    assert sorted(path.name for path in folder.iterdir()) == ["0.txt", "1.txt", "2.txt", DONE]
    assert (folder / "0.txt").read_text() == "a 0\n"


def test_a_resumable_stage_goes_on_with_what_is_there(diary):
    diary.killed_in = ("a", 2)
    with pytest.raises(Killed):
        diary.make(diary.stage("a", resumable=True))
    diary.killed_in = None
    folder = diary.make(diary.stage("a", resumable=True))
    assert (folder / "0.txt").read_text() == "a 0\na 0\n"  # it was handed its own beginning
    assert (folder / "2.txt").read_text() == "a 0\n"


def test_work_that_fails_leaves_nothing_under_the_final_name(diary):
    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise OSError("disk full")

    stage = Stage(diary.root, "a", {}, (), fail)
    with pytest.raises(OSError, match="disk full"):
        stage.make(diary.announce)
    assert not stage.folder.exists()
    assert not stage.is_done


def test_a_kill_while_a_result_is_discarded_leaves_none_under_its_name(diary, monkeypatch):
    stage = diary.stage("a")
    diary.make(stage)

    def delete_one_file(folder, **_):
        if not folder.exists():
            return
        next(path for path in folder.iterdir() if path.name != DONE).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", delete_one_file)
        with pytest.raises(Killed):
            stage.discard()
    assert not stage.folder.exists()
    assert not stage.is_done
    folder = diary.make(diary.stage("a"))
    assert diary.worked == ["a"]
    assert sorted(path.name for path in folder.iterdir()) == ["0.txt", "1.txt", "2.txt", DONE]


def test_a_discarded_result_is_gone_and_discarding_it_again_is_no_error(diary):
    stage = diary.stage("a")
    diary.make(stage)
    stage.discard()
    stage.discard()
    assert list(diary.root.iterdir()) == []


def test_a_folder_that_is_not_whole_is_made_again(diary):
    # Someone deleted a part of it by hand, stage.json included: no OSError after the work is done.
    stage = diary.stage("a")
    diary.make(stage)
    (stage.folder / DONE).unlink()
    (stage.folder / "1.txt").unlink()
    diary.make(diary.stage("a"))
    assert diary.worked == ["a"]
    assert (stage.folder / "1.txt").read_text() == "a 0\n"


def test_the_record_says_what_the_result_was_made_from(diary):
    stage = diary.stage("a", value=3)
    record = json.loads((diary.make(stage) / DONE).read_text())
    assert record == {
        "name": "a",
        "digest": stage.digest,
        "settings": {"value": 3, "version": "v"},
    }
    assert stage.folder.name == f"a-{stage.digest[:12]}"


def test_the_plan_lists_every_stage_once_inputs_first(diary):
    names = [stage.name for stage in in_order([chain(diary)])]
    assert names == ["data", "left", "right", "end"]
    assert not diary.root.exists()  # a plan does nothing


def test_what_a_finished_stage_needed_is_no_longer_pending(diary):
    first = diary.stage("a")
    second = diary.stage("b", first)
    third = diary.stage("c", second)
    assert [stage.name for stage in third.pending()] == ["a", "b", "c"]
    diary.make(second)
    first.discard()
    assert [stage.name for stage in third.pending()] == ["c"]
    assert [stage.name for stage in in_order([third])] == ["a", "b", "c"]
