import contextlib
import json

import pytest

from engine.errors import CorruptState, FolderError
from engine.run.folder import Run
from engine.run.inputs import identity_of
from tests.tinydistill_tui.fixtures import NOW, SCENES, SETTINGS, append, held, make_run
from tinydistill_tui.screens.welcome import state_words
from tinydistill_tui.view.plan_facts import cut_words
from tinydistill_tui.work import control, runs


def test_all_runs_are_found_also_elsewhere_and_what_is_no_run_is_not(runs_folder, tmp_path):
    make_run(runs_folder, "a")
    elsewhere = make_run(tmp_path / "other", "b")
    (runs_folder / "no run").mkdir()
    assert {path.name for path in runs.find()} == {"a"}
    runs.remember(elsewhere)
    assert {path.name for path in runs.find()} == {"a", "b"}
    (elsewhere / "run.json").unlink()
    assert {path.name for path in runs.find()} == {"a"}


@pytest.mark.parametrize(
    ("scene", "live", "word", "where"),
    [
        ("training", True, "training", "214/287, 33 min left"),
        ("scoring", True, "scoring", "48 %, 48 min left"),
        ("stopped", False, "stopped", "step 214/287"),
        ("failed", False, "failed", "There was no room to write /home/ada/runs/notes-0412/checkpoints."),
        ("done", False, "done", "in 3 h 42"),
        ("lost", False, "lost", "no event for 24 h 00"),
    ],
)
def test_summary_says_state_and_place(runs_folder, scene, live, word, where):
    path = make_run(runs_folder, scene=scene)
    if live:
        with held(path):
            summary = runs.summary(path, NOW)
    else:
        summary = runs.summary(path, NOW)
    assert (summary.state.word, summary.where) == (word, where)
    assert summary.gap_closed == (0.64 if scene == "done" else None)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("width", [200, 60])
def test_menu_says_where_each_run_is_without_loose_ends(runs_folder, scene, live, width):
    path = make_run(runs_folder, scene=scene)
    with held(path) if live else contextlib.nullcontext():
        words = cut_words(state_words(runs.summary(path, NOW)), width)
    assert words == words.strip(" ,:;·")
    assert ", ," not in words


def test_summary_of_a_long_run_reads_only_the_end(runs_folder):
    path = make_run(runs_folder, scene="scoring")
    memory = {"time": NOW - 1, "kind": "memory", "phase": "teacher", "bytes": 1, "x": "x" * 500}
    append(path, [memory] * 2000)
    append(path, [{"time": NOW - 1, "kind": "progress", "phase": "teacher", "done": 1, "total": 2, "unit": "tokens"}])
    with held(path):
        summary = runs.summary(path, NOW)
    assert summary.recent.events < 1000
    assert (summary.state.word, summary.where) == ("scoring", "50 %")


def test_unchanged_runs_are_not_read_again(runs_folder, monkeypatch):
    path = make_run(runs_folder, scene="stopped")
    known, read = runs.RunList(), []
    monkeypatch.setattr(
        runs, "summary", lambda path, now, original=runs.summary: read.append(path) or original(path, now)
    )
    first = known.refresh(NOW)
    assert [each.name for each in known.refresh(NOW + 2)] == [each.name for each in first]
    assert len(read) == 1
    append(path, [{"time": NOW, "kind": "run_resumed", "pid": 1}])
    known.refresh(NOW + 4)
    assert len(read) == 2


@pytest.mark.parametrize("gap", [0.5, None])
def test_a_finished_run_keeps_its_words_when_it_is_looked_at_again(runs_folder, gap):
    path = make_run(runs_folder, scene="done")
    report = json.loads((path / "report.json").read_text())
    (path / "report.json").write_text(json.dumps({**report, "gap_closed": gap}))
    known = runs.RunList()
    (first,) = known.refresh(NOW)
    assert first.where.startswith("in ")
    assert [each.where for each in known.refresh(NOW + 2)] == [first.where]


def test_damaged_run_is_in_the_list_all_the_same(runs_folder):
    path = make_run(runs_folder)
    (path / "run.json").write_text("{not json")
    (path / "events.jsonl").write_text("[1]\n\x00\xff\n")
    (summary,) = runs.RunList().refresh(NOW)
    assert summary.state.word == "lost"
    assert summary.where == "never began"


def test_deleting_takes_only_runs_that_nobody_works_on(runs_folder, tmp_path):
    path = make_run(runs_folder)
    with held(path), pytest.raises(FolderError, match="is running: it is not deleted"):
        runs.delete(path)
    assert (path / "events.jsonl").exists()
    runs.delete(path)
    assert not path.exists()
    precious = tmp_path / "photos"
    precious.mkdir()
    with pytest.raises(FolderError, match="holds no run"):
        runs.delete(precious)
    link = runs_folder / "link"
    link.symlink_to(make_run(tmp_path, "kept"))
    with pytest.raises(FolderError):
        runs.delete(link)
    assert (tmp_path / "kept" / "run.json").exists()


def test_asking_reaches_only_who_is_there(runs_folder):
    path = make_run(runs_folder)
    with pytest.raises(FolderError, match="is not running"):
        control.ask(path, "pause")
    with held(path):
        control.ask(path, "pause")
        with pytest.raises(FolderError, match="is already running"):
            control.start(path)
    (line,) = (path / "control").read_text().splitlines()
    assert json.loads(line)["command"] == "pause"
    assert json.loads(line)["by"].startswith("tinydistill-tui ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {}}, "is not of a kind"),
        ({"settings": SETTINGS | {"draws": 12}}, "--draws 12: there is no such setting"),
        ({"settings": SETTINGS | {"student_batch": "many"}}, "--student_batch many"),
        ({"settings": SETTINGS | {"sequence_length": None}}, "is not of a kind"),
    ],
)
def test_run_of_another_version_that_cannot_go_on_is_refused_and_left_as_it_was(runs_folder, change, named):
    path = make_run(runs_folder, scene="stopped")
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(info | change))
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"}
    for _ in range(2):
        with pytest.raises(CorruptState) as found:
            control.start(path)
        assert named in found.value.paragraph()
        assert "Use the version that made the run" in found.value.todo
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"} == before


@pytest.mark.parametrize("lacking", ["asked", "choices", "predicted", "created", "versions"])
def test_run_of_another_version_continues_without_what_only_readers_need(runs_folder, monkeypatch, lacking):
    path = make_run(runs_folder, scene="stopped")
    info = json.loads((path / "run.json").read_text())
    del info[lacking]
    (path / "run.json").write_text(json.dumps(info))
    started = []
    monkeypatch.setattr(control, "_started", [])
    monkeypatch.setattr(control.supervisor, "start", lambda path, **_: started.append(path))
    control.start(path)
    assert started == [path]


def test_run_that_was_moved_with_its_text_finds_it(tmp_path, runs_folder, monkeypatch):
    path = make_run(runs_folder, scene="stopped")
    (runs_folder / "notes").mkdir()
    (runs_folder / "notes" / "a.md").write_text("a text")
    data = str(runs_folder / "notes")
    info = json.loads((path / "run.json").read_text())
    info |= {"folder": str(path), "settings": SETTINGS | {"data": data}, "asked": {"data": data}}
    (path / "run.json").write_text(json.dumps(info))
    Run.open(path).finish_phase("prepare", {"inputs": {"data": identity_of("data", data)}})
    there = runs_folder.rename(tmp_path / "there")
    monkeypatch.setattr(control, "_started", [])
    monkeypatch.setattr(control.supervisor, "start", lambda *_, **__: None)
    control.start(there / path.name)
    assert Run.open(there / path.name).settings.data == str(there / "notes")


def test_size_counts_what_lies_in_the_folder_and_not_what_it_links_to(runs_folder, tmp_path):
    path = runs_folder / "x"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "a").write_bytes(b"1" * 1000)
    (tmp_path / "big").write_bytes(b"1" * 100_000)
    (path / "link").symlink_to(tmp_path / "big")
    assert 1000 <= runs.folder_bytes(path) < 2000


def test_what_cannot_be_started_is_a_sentence(runs_folder):
    path = make_run(runs_folder, scene="stopped")
    (path / "run.log").unlink()
    (path / "run.log").mkdir()
    with pytest.raises(FolderError, match="cannot continue"):
        control.start(path)
    with pytest.raises(FolderError, match="There is no run in"):
        control.start(runs_folder / "nothing")
    (path / "run.json").write_text("{")
    with pytest.raises(CorruptState, match="cannot be read"):
        control.start(path)
