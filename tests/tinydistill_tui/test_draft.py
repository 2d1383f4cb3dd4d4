import stat

import pytest

from engine.settings.command import command_line
from engine.settings.config import RunConfig
from tinydistill_tui.work.draft import Draft, budget_text, draft_path


def test_draft_is_read_back_as_it_was_saved():
    draft = Draft.of(
        {"teacher": 'a "quoted" näme\\', "samples": "many", "demo": False, "packing": False, "holdout": 0.1}
    )
    draft.save()
    again = Draft.load()
    assert again.answers == draft.answers
    assert again.answers["packing"] == "off"
    assert "demo" not in again.answers
    assert again.note == ""


def test_nothing_saved_is_an_empty_draft():
    assert Draft.load().answers == {}


@pytest.mark.parametrize("content", [b"teacher = ", b"\xff\xfe", b"[" * 5000])
def test_damaged_file_is_put_aside_with_a_note(content):
    draft_path().parent.mkdir(parents=True)
    draft_path().write_bytes(content)
    draft = Draft.load()
    assert draft.answers == {}
    assert "last.bad" in draft.note
    assert not draft_path().exists()
    assert draft_path().with_suffix(".bad").read_bytes() == content


def test_settings_of_another_version_are_left_out():
    draft_path().parent.mkdir(parents=True)
    draft_path().write_text('teacher = "x"\nsparkle = "3"\nresume = "on"\nsamples = [1]\n')
    assert Draft.load().answers == {"teacher": "x"}


def test_folder_that_cannot_be_written_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "state").write_text("a file in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    draft = Draft({"samples": "3"})
    draft.save()
    assert "could not be saved" in draft.note


def test_bad_answers_are_kept_and_left_out_of_the_config():
    draft = Draft({"samples": "many", "student_batch": "2", "epochs": "1", "steps": "2"})
    assert draft.problem("samples") == "expected a whole number from 1 up"
    assert draft.problem("student_batch") is None
    assert draft.good_config().student_batch == 2
    assert [problem.setting for problem in draft.problems()] == ["samples", "steps"]
    assert [problem.setting for problem in draft.problems(["steps"])] == ["steps"]


def test_undo_goes_back_change_by_change():
    draft = Draft()
    draft.remember()
    draft.set("samples", "3")
    draft.remember()
    draft.set("samples", "")
    assert draft.answers == {}
    assert draft.undo()
    assert draft.answers == {"samples": "3"}
    assert draft.undo()
    assert draft.answers == {}
    assert not draft.undo()


@pytest.mark.parametrize(
    ("text", "meant"),
    [("3", "3GiB"), ("0.5", "0.5GiB"), ("50 %", "4096MiB"), ("700MB", "700MB"), ("3000000000", "3000000000"), ("", "")],
)
def test_budget_is_read_as_a_person_means_it(text, meant):
    assert budget_text(text, 8 * 2**30) == meant


def test_file_is_for_its_owner_alone_or_at_least_whole():
    draft = Draft({"samples": "3"})
    draft.save()
    assert draft_path().stat().st_mode & stat.S_IRUSR
    assert [path.name for path in draft_path().parent.iterdir()] == ["last.toml"]


def test_size_of_the_command_line_stands_in_the_field_as_it_was_typed():
    asked = RunConfig(ram_budget="340MB", memory_budget="3GiB").asked()
    draft = Draft.of(asked)
    assert (draft.get("ram_budget"), draft.get("memory_budget")) == ("340MB", "3GiB")
    assert "--ram_budget 340MB" in command_line(RunConfig(ram_budget="340MB"))
