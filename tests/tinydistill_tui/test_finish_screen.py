import json

import pytest
from textual.widgets import Input, OptionList

from engine.disk import places
from engine.run.afterwards import next_steps
from engine.run.report import in_words
from engine.settings import profiles
from engine.settings.command import resume_command
from tests.tinydistill_tui.fixtures import REPORT, make_run
from tests.tinydistill_tui.screen import lines_of, text_of, until, watching
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.dialogs.confirm import ConfirmScreen
from tinydistill_tui.dialogs.details import PageScreen
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.screens.finish import FinishScreen
from tinydistill_tui.screens.models import ModelsScreen
from tinydistill_tui.view import result


async def test_result_comes_first_and_every_number_is_the_reports(runs_folder):
    path = make_run(runs_folder, scene="done")
    async with watching(path, size=(120, 40)) as (app, _):
        lines, screen = lines_of(app), text_of(app)
    assert "done in 3 h 44" in lines[0]
    assert "✓ It answers like its teacher in 72% of places (KL 0.27): close, with gaps." in lines[2]
    for words in (
        "2.104    2.918   2.397         -0.521",
        "18.50   10.99           -41%",
        "+13.5 points",
        "peak 1.1 GiB (predicted 1.1 GiB)",
        "34.5 bytes a token",
        "The best time to visit Porto is",
        "late spring",
    ):
        assert words in screen, words


async def test_student_past_its_teacher_has_a_sentence_of_its_own(runs_folder):
    path = make_run(runs_folder, scene="done")
    after = {**REPORT["student_after"], "holdout_loss": 1.95}
    intervals = {**REPORT.get("intervals", {}), "loss_beyond_teacher": [-0.21, -0.1]}
    report = {**REPORT, "gap_closed": 1.45, "student_after": after, "intervals": intervals}
    (path / "report.json").write_text(json.dumps(report))
    async with watching(path) as (app, _):
        assert "✓ The student went past its teacher: hold-out loss 1.950, the teacher's 2.104." in text_of(app)


async def test_report_that_is_gone_is_said(runs_folder):
    path = make_run(runs_folder, scene="done")
    async with watching(path) as (app, pilot):
        (path / "report.md").unlink()
        await pilot.press("o")
        await until(pilot, lambda: any("It is not there" in each.message for each in app._notifications), "it is said")


async def test_worse_student_is_said_in_the_first_sentence(runs_folder):
    path = make_run(runs_folder, scene="worse")
    async with watching(path) as (app, _):
        assert "! The student got worse: its hold-out loss rose from 2.918 to 3.100." in text_of(app)


async def test_samples_are_turned_and_read_whole_and_commands_copied(runs_folder):
    path = make_run(runs_folder, scene="done")
    async with watching(path, size=(120, 40)) as (app, pilot):
        await pilot.press("right")
        await until(
            pilot, lambda: "Samples ── 2 of 2" in text_of(app) and "took the early train" in text_of(app), "next"
        )
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, PageScreen), "all of them on a page")
        for sample in REPORT["samples"]:
            assert all(words in app.screen.text for words in sample.values())
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "back")
        for _ in range(4):
            await pilot.press("down")
        await pilot.press("y")
        assert app.clipboard == f"tiny-distill --resume --output_dir {path} --epochs 2"


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_every_command_is_shown_whole(runs_folder, size):
    path = make_run(runs_folder, scene="done")
    async with watching(path, size=size) as (app, pilot):
        menu = app.screen.query_one("#next", OptionList)
        for step in next_steps(REPORT, path):
            if step.key != "beside":
                menu.highlighted = [str(option.id) for option in menu.options].index(f"step-{step.key}")
                await pilot.pause()
                shown = "".join(line.rstrip("\n") for line in lines_of(app)).replace(" ", "")
                assert step.line.replace(" ", "") in shown, step.key


@pytest.mark.parametrize("key", ["transformers", "gguf", "ollama", "cache", "folder"])
async def test_enter_runs_the_command(runs_folder, monkeypatch, key):
    path = make_run(runs_folder, scene="done")
    ran = []
    monkeypatch.setattr(
        TinyDistillApp, "run_in_the_terminal", lambda self, words, folder=None: ran.append((list(words), folder))
    )
    monkeypatch.setenv("SHELL", "/bin/their-shell")
    async with watching(path) as (app, pilot):
        menu = app.screen.query_one("#next", OptionList)
        menu.highlighted = [str(option.id) for option in menu.options].index(f"step-{key}")
        await pilot.press("enter")
        await pilot.pause()
    step = next(step for step in next_steps(REPORT, path) if step.key == key)
    assert ran == ([(["/bin/their-shell"], path)] if key == "folder" else [(list(step.words), None)])


async def test_train_longer_asks_first_and_a_second_student_begins_in_the_wizard(runs_folder):
    path = make_run(runs_folder, scene="done")
    async with watching(path) as (app, pilot):
        menu = app.screen.query_one("#next", OptionList)
        keys = [str(option.id) for option in menu.options]
        menu.highlighted = keys.index("step-longer")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks")
        assert "Train it longer, to 2 epochs?" in text_of(app)
        await pilot.press("enter")  # the first answer starts nothing
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "back")
        menu.highlighted = keys.index("step-another")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen), "the wizard")
        assert app.screen.draft.get("cache_dir") == str(path / "cache")
        assert app.screen.draft.get("student") == "from-teacher"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"teacher": 3}', json.dumps({**REPORT, "samples": 7, "phases": None, "student_after": {}})]
)
async def test_odd_report_is_no_reason_to_fail(runs_folder, content):
    path = make_run(runs_folder, scene="done")
    (path / "report.json").write_text(content)
    async with watching(path) as (app, pilot):
        assert "report.json" in text_of(app)
        await pilot.press("y", "right", "l")


async def test_run_until_the_teacher_is_done_without_a_report(runs_folder):
    path = make_run(runs_folder, scene="done")
    (path / "report.json").unlink()
    info = json.loads((path / "run.json").read_text())
    info["settings"]["until"] = "teacher"
    (path / "run.json").write_text(json.dumps(info))
    async with watching(path) as (app, _):
        assert "✓ The requested phases are done: the run stops after teacher." in text_of(app)


def test_change_is_signed_and_worded():
    changes = {row[0]: row[4] for row in result.table(REPORT)[1:]}
    assert changes == {
        "loss": "-0.521",
        "perplexity": "-41%",
        "KL to the teacher": "-63%",
        "top-1 agreement": "+13.5 points",
        "calibration error": "-0.023",
    }


async def test_what_was_asked_becomes_a_profile_or_another_run(runs_folder):
    path = make_run(runs_folder, scene="done")
    async with watching(path) as (app, pilot):
        await pilot.press("p")
        await until(pilot, lambda: "Save as a profile" in text_of(app), "it asks for a name")
        await pilot.press(*"mine", "enter")
        await until(pilot, lambda: profiles.names() == ["mine"], "it is saved")
        assert profiles.load("mine")["student_batch"] == 2
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen), "the wizard begins with it")
        assert app.screen.draft.get("data") == "/home/ada/notes"


async def test_student_of_a_teacher_that_does_not_know_the_text_is_no_success(runs_folder):
    path = make_run(runs_folder, scene="done")
    report = {
        **REPORT,
        "teacher": {**REPORT["teacher"], "holdout_loss": 6.112},
        "student_before": {**REPORT["student_before"], "holdout_loss": 6.110},
        "student_after": {**REPORT["student_after"], "holdout_loss": 5.761},
        "chance": {"holdout_loss": 6.9},
    }
    (path / "report.json").write_text(json.dumps(report))
    async with watching(path) as (app, _):
        assert "! The teacher hardly knows this text, so there was little to learn" in text_of(app)
        assert "went past" not in text_of(app)


async def test_table_of_a_narrow_window_has_a_column_less_and_no_row_is_broken(runs_folder):
    path = make_run(runs_folder, scene="done")
    async with watching(path, size=(60, 30)) as (app, _):
        rows = [line.strip() for line in lines_of(app) if line.strip().startswith(("loss ", "perplexity ", "KL to"))]
        assert [len(row.split("   ")) > 1 for row in rows] == [True] * 3
        assert "-0.521" not in text_of(app)
        assert "2.397" in rows[0]
        assert "2.918" in rows[0]


async def test_home_is_a_tilde_where_it_is_shown_and_whole_where_it_is_copied(runs_folder, monkeypatch):
    path = make_run(runs_folder, scene="done")
    monkeypatch.setattr(places, "home", lambda: runs_folder.parent)
    async with watching(path) as (app, pilot):
        assert f"The student: ~/runs/{path.name}/student" in text_of(app)
        assert f"$ tiny-distill-chat ~/runs/{path.name}" in text_of(app)
        await pilot.press("y")
        assert app.clipboard == f"tiny-distill-chat {path}"


def test_a_perplexity_of_thirty_digits_leaves_room_for_its_change():
    found = {who: {"perplexity": value} for who, value in (("teacher", 45.1), ("student_before", 109.64))}
    assert result.table({**found, "student_after": {"perplexity": 6.97e29}})[1][3] == "7.0e+29"


def test_a_kl_below_zero_is_shown_as_none_and_its_change_has_the_right_sign():
    """It was -0.039 before and 0.067 after, and the change was -272%."""
    found = {
        "teacher": {"kl_to_teacher": 0.0},
        "student_before": {"kl_to_teacher": -0.039},
        "student_after": {"kl_to_teacher": 0.067},
    }
    assert result.table(found)[1] == ["KL to the teacher", "0.000", "0.000", "0.067", "+0.067"]
    found["student_before"] = {"kl_to_teacher": 0.134}
    assert result.table(found)[1][-1] == "-50%"


def test_a_teacher_that_had_nothing_to_score_has_no_memory_to_compare():
    """It was "0 s, peak 0 B (predicted 1.0 GiB)" for a second student of the same records."""
    phases = {
        name: {"overhead_seconds": 1.0, "gemm_share": None, **REPORT["phases"][name]} for name in ("teacher", "student")
    }
    phases["teacher"] |= {"tokens": 0, "tokens_per_second": None, "peak_bytes": 0}
    report = {**REPORT, "phases": phases}
    told = dict(result.costs(report))
    assert told["score"] == "every row had its records already"
    assert "peak" in told["train"]
    assert "| 0 |" not in in_words(report, "a-run")


def test_a_change_of_many_times_is_told_as_a_factor():
    worse = {**REPORT, "student_after": {**REPORT["student_after"], "perplexity": 18.5e9, "kl_to_teacher": 21.68}}
    changes = {row[0]: row[-1] for row in result.table(worse)}
    assert (changes["perplexity"], changes["KL to the teacher"]) == ("× 1.0e+09", "× 29")


async def test_failed_run_shows_the_command_that_resumes_it_and_copies_it(runs_folder):
    path = make_run(runs_folder, scene="failed")
    async with watching(path) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "the end")
        assert resume_command(path).replace(" ", "") in "".join(lines_of(app)).replace(" ", "").replace("\n", "")
        await pilot.press("y")
        assert app.clipboard == resume_command(path)


async def test_chosen_command_is_edited_and_run(runs_folder, monkeypatch):
    path, ran = make_run(runs_folder, scene="done"), []
    monkeypatch.setattr(TinyDistillApp, "run_in_the_terminal", lambda self, words, folder=None: ran.append(words))
    async with watching(path) as (app, pilot):
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, NameScreen), "it asks")
        assert "tiny-distill-eval" in text_of(app)
        line = app.screen.query_one("#name", Input)
        assert line.value == f"tiny-distill-chat {path}"
        for wrong in ("", "tiny-distill-chat 'open"):
            line.value = wrong
            await pilot.press("enter")
            await until(pilot, lambda: "quotation mark" in text_of(app), "it is refused")
        line.value = f"tiny-distill-chat {path} --temperature 0.5"
        await pilot.press("enter")
        await until(pilot, lambda: ran == [["tiny-distill-chat", str(path), "--temperature", "0.5"]], "it runs")
