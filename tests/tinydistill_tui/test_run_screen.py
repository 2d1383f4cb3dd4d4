import asyncio
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.widgets import Input

from engine.channel.last_word import LastWord
from engine.machine.device import CPU
from engine.model_files.demo import DEMO_TEACHER
from engine.planner import share
from engine.planner.measure import cautious_rates
from engine.run.folder import Run
from engine.settings.config import RunConfig
from engine.student.verdict import gap_closed
from tests.tinydistill_tui.fixtures import NOW, append, events_of, held, make_run
from tests.tinydistill_tui.screen import lines_of, text_of, until, until_keys, watching, words_of
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.dialogs.confirm import ConfirmScreen
from tinydistill_tui.dialogs.help import key_table
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.screens.finish import FinishScreen
from tinydistill_tui.screens.run import RunScreen
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.watch import fold
from tinydistill_tui.widgets.log_pane import LogPane
from tinydistill_tui.widgets.log_view import LogView
from tinydistill_tui.widgets.plot import Plot
from tinydistill_tui.widgets.run_drawings import METRICS, memory_drawing, metric_drawing
from tinydistill_tui.work import busy, control, machine_share


def commands_of(path):
    control = path / "control"
    return [json.loads(line)["command"] for line in control.read_text().splitlines()] if control.exists() else []


async def test_everything_important_is_in_sight_at_80x24(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, _):
            lines = lines_of(app)
    assert "notes-0412  ● training  3 h 11 elapsed · about 33 min left" in lines[0]
    assert "gap 67% closed" in lines[0]
    screen = "\n".join(lines)
    for words in (
        "prepare     0:42",
        "309 MiB",
        "(predicted 1.1)",
        "214/287 steps",
        "75 %",
        "33 min left",
        "GPU memory, GiB",
        "now 2.5",
        "predicted",
        "Label loss (ce)",
        "237 of 238 lines",
        "step 214 loss",
        "3.1 GiB free",
        "Closing this window is safe",
    ):
        assert words in screen, words


@pytest.mark.parametrize(
    ("scene", "word"),
    [
        ("starting", "starting"),
        ("preparing", "preparing"),
        ("scoring", "scoring"),
        ("paused", "paused"),
        ("stopped", "■ stopped"),
        ("lost", "? lost"),
    ],
)
async def test_state_is_a_word_in_the_first_line(runs_folder, scene, word):
    path = make_run(runs_folder, scene=scene)
    if scene in ("stopped", "lost"):
        async with watching(path) as (app, pilot):
            assert word in lines_of(app)[0]
            assert "R resumes it" in text_of(app)
            await until_keys(app, pilot, "Resume")
            assert "Pause" not in lines_of(app)[-1]
    else:
        with held(path):
            async with watching(path) as (app, _):
                assert word in lines_of(app)[0]


async def test_new_events_are_shown_while_one_looks(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            append(path, [{"time": NOW, "kind": "log", "level": "info", "message": "a new line"}])
            await until(pilot, lambda: "a new line" in text_of(app), "the line is shown")


async def test_half_a_line_is_ignored_and_garbage_is_counted(runs_folder):
    path = make_run(runs_folder)
    with (path / "events.jsonl").open("a") as file:
        file.write("garbage\n" + '{"time": 1775998799, "kind": "log", "level": "info", "mess')
    with held(path):
        async with watching(path) as (app, pilot):
            assert "1 unreadable line" in lines_of(app)[0]
            with (path / "events.jsonl").open("a") as file:
                file.write('age": "the other half"}\n')
            await until(pilot, lambda: "the other half" in text_of(app), "the whole line is shown")
            assert "1 unreadable line" in lines_of(app)[0]


async def test_replaced_events_file_is_read_again(runs_folder):
    path = make_run(runs_folder)
    other = make_run(runs_folder, "other", "preparing")
    with held(path):
        async with watching(path) as (app, pilot):
            (other / "events.jsonl").replace(path / "events.jsonl")
            await until(pilot, lambda: "preparing" in lines_of(app)[0], "the new file's state")
            assert app.screen.view.phases["teacher"].state == "waiting"


async def test_leaving_a_live_run_asks_and_leave_it_running_is_chosen(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks")
            assert "notes-0412 is training: 75 %, about 33 min left" in text_of(app)
            assert app.focused.id == "answer-leave"
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, RunScreen), "Esc stays")
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks again")
            await pilot.press("enter")
            await until(pilot, lambda: app._exit, "it leaves")
    assert commands_of(path) == []


async def test_stop_and_leave_asks_the_engine(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks")
            await pilot.press("s")
            await until(pilot, lambda: app._exit, "it leaves")
    assert commands_of(path) == ["stop"]


@pytest.mark.parametrize("scene", ["done", "failed", "stopped", "lost"])
async def test_leaving_what_is_over_does_not_ask(runs_folder, scene):
    path = make_run(runs_folder, scene=scene)
    async with watching(path) as (app, pilot):
        await pilot.press("q")
        await until(pilot, lambda: app._exit, "it leaves")


async def test_twice_ctrl_c_leaves_at_once(runs_folder, monkeypatch):
    monkeypatch.setattr("tinydistill_tui.app._TWICE_SECONDS", 60.0)  # also on a machine that is busy
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("ctrl+c")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "once asks like q")
            await pilot.press("ctrl+c")
            await until(pilot, lambda: app._exit, "twice leaves")
    assert commands_of(path) == []


async def test_pause_says_pausing_until_the_engine_says_paused(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("space")
            await until(pilot, lambda: "pausing…" in lines_of(app)[0], "it was asked for")
            assert commands_of(path) == ["pause"]
            append(
                path,
                [
                    {"time": NOW, "kind": "control", "state": "pausing"},
                    {"time": NOW, "kind": "control", "state": "paused"},
                ],
            )
            await until(pilot, lambda: "■ paused" in lines_of(app)[0], "the engine said so")
            assert "Space continues" in text_of(app)
            await pilot.press("space")
            assert commands_of(path) == ["pause", "resume"]
            append(path, [{"time": NOW, "kind": "control", "state": "running"}])
            await until(pilot, lambda: "● training" in lines_of(app)[0], "it continues")


async def test_stop_asks_and_ends_as_stopped(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("S")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks")
            assert "it resumes at step 214" in text_of(app)
            assert app.focused.id == "answer-stay"
            await pilot.press("s")
            await until(pilot, lambda: "stopping…" in lines_of(app)[0], "it was asked for")
            append(path, [{"time": NOW, "kind": "control", "state": "stopping"}])
            await until(pilot, lambda: "Stop" not in lines_of(app)[-1] and "! stopping" in lines_of(app)[0], "no key")
            append(path, [{"time": NOW, "kind": "run_finished", "status": "stopped", "exit_code": 130}])
            await until(pilot, lambda: "stopped" in lines_of(app)[0], "the engine said so")
    assert commands_of(path) == ["stop"]


async def test_asking_a_run_that_nobody_holds_is_a_sentence(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            (path / "lock").unlink()
            app.screen.action_pause()
            await pilot.pause()
            assert any("is not running" in note.message for note in app._notifications)


async def test_run_that_ends_shows_its_result_by_itself(runs_folder):
    path = make_run(runs_folder, scene="scoring")
    with held(path):
        async with watching(path) as (app, pilot):
            append(
                path,
                [
                    {
                        "time": NOW,
                        "kind": "error",
                        "what": "The disk said no.",
                        "why": "It is full.",
                        "todo": "Free some.",
                    },
                    {"time": NOW, "kind": "run_finished", "status": "failed", "exit_code": 4},
                ],
            )
            await until(pilot, lambda: "failed" in lines_of(app)[0], "it failed")
            assert isinstance(app.screen, RunScreen)
    async with watching(path) as (app, pilot):
        assert isinstance(app.screen, FinishScreen)
        shown = text_of(app).replace("\n", "").replace(" ", "")  # a long path goes over two lines, wherever it breaks
        for words in ("✗ The disk said no.", "It is full.", "Free some.", "run.log", "R tries again"):
            assert words.replace(" ", "") in shown
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "back to the log")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "Enter shows it again")


async def test_log_filter_counts_marks_and_keeps_the_old_one_when_bad(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("slash", *"warn")
            await until(pilot, lambda: "1 of 238 lines" in text_of(app), "one line matches")
            await pilot.press("escape")
            await until(pilot, lambda: "237 of 238 lines" in text_of(app), "Esc shows all")
            await pilot.press("w")
            await until(
                pilot, lambda: "warning and above" in text_of(app) and "1 of 238" in text_of(app), "only warnings"
            )
            await pilot.press("i", "slash", "slash", *"loss 2.2")
            await until(pilot, lambda: "57 of 238 lines" in text_of(app), "a regular expression")
            count = len(app.screen.query_one(LogView).lines)
            await pilot.press("left_square_bracket")
            await until(pilot, lambda: "✗ no regular expression" in text_of(app), "the bad one is marked")
            assert len(app.screen.query_one(LogView).lines) == count
            await pilot.press("q")  # a letter in a field is a letter
            assert isinstance(app.screen, RunScreen)


async def test_level_without_lines_says_so_in_the_log_and_copies_nothing(runs_folder):
    path = make_run(runs_folder, scene="preparing")
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("w")
            await until(pilot, lambda: "No warnings or errors in this log. i shows" in text_of(app), "it is said")
            await pilot.press("y")
            assert app.clipboard == ""
            await until(
                pilot, lambda: any("Nothing to copy" in note.message for note in app._notifications), "it is told"
            )
            await pilot.press("i")
            await until(pilot, lambda: "No warnings" not in text_of(app), "all lines are back")


async def test_run_stopped_while_it_prepares_says_stopped_and_keeps_its_curve(runs_folder):
    path = make_run(runs_folder, scene="starting")
    budget = {"bytes": 2**28, "peak_bytes": 2**28, "budget_bytes": 15 * 2**30}
    append(
        path,
        [
            {"time": NOW - 1.9, "kind": "phase_started", "phase": "prepare"},
            {"time": NOW - 1.5, "kind": "memory", "phase": "prepare", **budget},
            {"time": NOW - 1, "kind": "memory", "phase": "prepare", **budget, "bytes": 2**27},
            {"time": NOW - 0.5, "kind": "run_finished", "status": "stopped", "exit_code": 130},
        ],
    )
    async with watching(path) as (app, _):
        row = next(line for line in lines_of(app) if "prepare" in line)
        assert row.split() == ["■", "prepare", "stopped"]
        drawing = memory_drawing(app.screen.view, NOW, device=CPU)
        assert [level.name for level in drawing.levels] == ["predicted"] * len(drawing.levels)
        assert drawing.note == "budget 15.0 GiB"


async def test_phase_that_cannot_tell_a_share_says_what_it_does(runs_folder):
    path = make_run(runs_folder, scene="starting")
    now = {"time": NOW - 1, "phase": "prepare"}
    append(path, [{**now, "kind": "phase_started"}])
    with held(path):
        async with watching(path) as (app, pilot):
            assert "prepare under way" in words_of(app)
            said = {"kind": "log", "level": "info", "code": "stage", "message": "Checking the models' files."}
            append(path, [{**now, **said}])
            await until(pilot, lambda: "prepare checking the models' files" in words_of(app), "it is said")
            append(path, [{**now, "kind": "progress", "done": 5, "total": 10, "unit": "rows"}])
            await until(pilot, lambda: "5/10 rows" in text_of(app), "the share is told")
            assert "checking" not in lines_of(app)[2]


def test_speed_is_told_beside_what_this_machine_can_do():
    view = fold(RunView(), events_of("training", "r"))
    speed = next(metric for metric in METRICS if metric.name == "tokens_per_second")
    last = view.metrics["tokens_per_second"].last

    def note(metric, full_rate):
        return metric_drawing(view, metric, by_step=True, log=False, full_rate=full_rate).note

    assert note(speed, last / 0.71) == "71% of what this machine can do"
    assert note(speed, None) == ""
    assert note(speed, last / 2) == ""  # the machine was measured while other programs took a part of it
    assert note(METRICS[0], last / 0.71) == ""


@pytest.mark.parametrize("cut", [True, False])
def test_full_rate_is_the_rate_of_a_share_of_one(tmp_path, monkeypatch, cut):
    rates = replace(cautious_rates("cpu", 2), measured=True)
    monkeypatch.setattr(share, "machine_rates", lambda **_: rates)
    settings = {"teacher": str(DEMO_TEACHER), "student": "from-teacher" if cut else str(DEMO_TEACHER),
                "sequence_length": 64, "precision": "fp32", "device": "cpu"}  # fmt: skip
    assert (machine_share.full_rate(tmp_path, settings) is None) == cut  # nothing was cut yet
    if cut:
        shutil.copytree(DEMO_TEACHER, tmp_path / "initial-student")
    full = machine_share.full_rate(tmp_path, settings)
    config = RunConfig.model_validate(settings)
    assert share.gemm_shares(config, DEMO_TEACHER, {"student": full}, rates)["student"] == pytest.approx(1.0)
    monkeypatch.setattr(share, "machine_rates", lambda **_: replace(rates, measured=False))
    assert machine_share.full_rate(tmp_path, settings) is None
    assert machine_share.full_rate(tmp_path, {"epochs": "many"}) is None


async def test_keys_below_are_those_that_work_where_one_is(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await until_keys(app, pilot, "? Help", "/ Filter", "Space Pause")
            await pilot.press("slash")
            await until_keys(app, pilot, "F1 Help")
            assert not [words for words in ("? Help", "/ Filter", "Pause", "Stop") if words in lines_of(app)[-1]]
            await pilot.press("f1")
            await until(pilot, lambda: "Esc closes" in text_of(app), "the help is there")
            await pilot.press("escape", "escape")
            await until_keys(app, pilot, "? Help")


async def test_enter_keeps_all_lines_and_n_goes_from_match_to_match(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("slash", *"checkpoint", "enter")
            window = app.screen.query_one(LogView)
            await until(pilot, lambda: window.has_focus and len(window.lines) == 237, "all lines are there")
            newest = window.current
            assert "checkpoint step-00000200" in window.lines[newest].text
            await pilot.press("N")
            assert "checkpoint step-00000150" in window.lines[window.current].text
            await pilot.press("n")
            assert window.current == newest
            assert not window.follow


async def test_scrolling_up_pauses_and_says_how_much_is_new(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("up", "up")
            await until(pilot, lambda: "── paused" in text_of(app), "it follows no more")
            append(path, [{"time": NOW, "kind": "log", "level": "info", "message": f"late {n}"} for n in range(5)])
            await until(pilot, lambda: "paused, 5 new" in text_of(app), "it says what is new")
            await pilot.press("f")
            await until(pilot, lambda: "late 4" in text_of(app) and "following" in text_of(app), "it follows again")


async def test_copy_and_write_take_what_is_shown(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("w", "y")
            copied = "12:59:57 warning The disk is getting full: 3.1 GiB free.\n"
            await until(pilot, lambda: app.clipboard == copied, "the line is copied")
            said = [note.message for note in app._notifications]
            assert said[0].startswith("Sent the shown log to the terminal's clipboard: 57 B."), "no terminal answers"
            await pilot.press("W")
            await until(pilot, lambda: (path / "log-filtered.txt").exists(), "the file is there")
            assert (path / "log-filtered.txt").read_text() == app.clipboard
            await until(
                pilot,
                lambda: any("log-filtered.txt" in note.message for note in app._notifications),
                "the path is told",
            )


async def test_selected_text_is_what_is_copied(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            window = app.screen.query_one(LogView)
            row = len(window.lines) - 1 - window.scroll_offset.y
            await pilot.mouse_down(window, offset=(0, row))
            await pilot.hover(window, offset=(8, row))
            await pilot.mouse_up(window, offset=(8, row))
            await pilot.press("y")
            assert app.clipboard in ("12:59:57", "12:59:57 ")


async def test_warnings_stay_pinned_until_they_are_seen(runs_folder):
    path = make_run(runs_folder, scene="backed-off")
    with held(path):
        async with watching(path) as (app, pilot):
            assert "! 11:" in text_of(app) or "! 12:" in text_of(app)
            assert "backed off: student_batch 2 to 1 (out of memory)" in text_of(app)
            await pilot.press("c")
            await until(pilot, lambda: not app.screen.query_one("#notice").display, "the line is gone")


async def test_plot_keys_change_metric_axis_and_scale(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            for title in (
                "Loss",
                "Teacher loss (kd)",
                "Learning rate",
                "Tokens per second",
                "Gradient norm",
                "Label loss (ce)",
            ):
                await pilot.press("v")
                await until(pilot, lambda title=title: title in text_of(app), title)
            assert "step 1" in text_of(app)
            await pilot.press("x")
            await until(pilot, lambda: "step 1 " not in text_of(app).split("Log")[0], "over time")
            await pilot.press("g")
            await until(pilot, lambda: "Label loss (ce) (log)" in text_of(app), "logarithmic")


async def test_zoom_shows_one_pane_and_escape_ends_it(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("z")
            await until(pilot, lambda: app.screen.maximized is not None, "zoomed")
            assert isinstance(app.screen.maximized, LogPane)
            await pilot.press("escape")
            await until(pilot, lambda: app.screen.maximized is None, "not zoomed")
            assert isinstance(app.screen, RunScreen)


async def test_resizing_keeps_focus_and_filter_and_q_works_everywhere(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path, size=(120, 40)) as (app, pilot):
            await pilot.press("slash", *"loss", "enter")
            for size in ((80, 24), (60, 16), (20, 5), (120, 40), (200, 60), (80, 24), (20, 5)):
                await pilot.resize_terminal(*size)
                await pilot.pause(0.1)
                assert app.screen.query_one(LogPane).filter.typed == "loss"
                if size[1] >= 12:
                    assert isinstance(app.focused, LogView), size
            assert "training" in text_of(app)
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "q works at 20x5")
            await pilot.press("enter")
            await until(pilot, lambda: app._exit, "it leaves")


async def test_deleted_folder_is_a_sentence(runs_folder):
    path = make_run(runs_folder)
    async with watching(path) as (app, pilot):
        (path / "run.json").unlink()
        await until(pilot, lambda: "Its folder is gone" in text_of(app), "it says so")
        await until(pilot, lambda: "✗ gone" in lines_of(app)[0], "and the title does")
        await until(pilot, lambda: "✗ train" in text_of(app) and "●" not in text_of(app), "and the phases do")
        assert "live" not in lines_of(app)[0]
        assert "Pause" not in lines_of(app)[-1]
        await pilot.press("a")
        await asyncio.sleep(0.1)


async def test_help_names_no_key_that_a_terminal_lacks(runs_folder):
    async with watching(make_run(runs_folder, scene="stopped")) as (app, pilot):
        await pilot.press("question_mark")
        await until(pilot, lambda: "Esc closes" in text_of(app), "the help is there")
        screen = app.screen_stack[-2]
        assert any(key.startswith("super+") for key in screen.active_bindings)
        assert "super+" not in key_table(screen.active_bindings).plain


async def test_help_lists_every_key_with_what_it_does(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path, size=(100, 70)) as (app, pilot):
            await pilot.press("question_mark")
            await until(pilot, lambda: "Follow the newest line of the log" in text_of(app), "help")
            screen = text_of(app)
            for words in ("Space", "Pause at a safe point", "closing this window does not affect it", "?", "F12"):
                assert words in screen, words
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, RunScreen), "closed")


async def test_first_frame_says_that_it_reads_and_never_lost(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        app = TinyDistillApp(attach=path, options={"no_animation": True}, clock=lambda: NOW)
        seen = set()
        async with app.run_test(size=(80, 24)) as pilot:
            for _ in range(30):
                seen.add(lines_of(app)[0][:24].strip())
                await pilot.pause(0.01)
    assert not any("lost" in line for line in seen), seen


async def test_run_that_cannot_be_resumed_says_why(runs_folder):
    path = make_run(runs_folder, scene="stopped")
    async with watching(path) as (app, pilot):
        (path / "run.log").unlink()
        (path / "run.log").mkdir()
        await pilot.press("R")
        await until(pilot, lambda: any("cannot continue" in note.message for note in app._notifications), "it says why")
        assert isinstance(app.screen, RunScreen)


async def test_run_of_another_version_is_refused_in_a_sentence_and_gets_no_event(runs_folder):
    path = make_run(runs_folder, scene="failed")
    info = json.loads((path / "run.json").read_text())
    del info["settings"]["sequence_length"]
    (path / "run.json").write_text(json.dumps(info))
    events = (path / "events.jsonl").read_bytes()
    async with watching(path) as (app, pilot):
        for count in (1, 2):
            await pilot.press("R")
            await until(
                pilot,
                lambda: sum("Use the version" in note.message for note in app._notifications) == count,  # noqa: B023
                "it says why",
            )
    assert (path / "events.jsonl").read_bytes() == events


@pytest.mark.parametrize(("size", "words"), [((80, 24), "gap 6"), ((120, 40), "% of the gap closed")])
async def test_gap_that_is_closed_so_far_is_in_the_title(runs_folder, size, words):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path, size=size) as (app, _):
            share = gap_closed(2.104, 2.918, None, app.screen.view.holdout_loss("student_during"))
            assert words in lines_of(app)[0]
            assert f"{share:.0%}" in lines_of(app)[0]


async def test_student_that_is_worse_than_at_its_start_is_told_in_words(runs_folder):
    path = make_run(runs_folder)
    append(path, [{"time": NOW, "kind": "evaluation", "which": "student_during", "step": 214, "holdout_loss": 23.5}])
    with held(path):
        async with watching(path) as (app, _):
            assert "worse so far" in lines_of(app)[0]


async def test_no_gap_is_told_before_a_student_was_looked_at(runs_folder):
    path = make_run(runs_folder, scene="scoring")
    with held(path):
        async with watching(path) as (app, _):
            assert "gap" not in lines_of(app)[0]


async def test_chance_is_where_the_way_begins_when_the_student_began_below_it(runs_folder):
    path = make_run(runs_folder)
    append(path, [{"time": NOW, "kind": "evaluation", "which": "chance", "holdout_loss": 2.5}])
    with held(path):
        async with watching(path) as (app, _):
            view = app.screen.view
            assert view.gap_closed == gap_closed(2.104, 2.918, 2.5, view.holdout_loss("student_during"))


def test_one_busy_program_is_told_in_the_singular():
    assert busy.words(3.2, 2, 2) == "Other programs slow this run: a busy one shares its 2 cores."
    assert busy.words(4.2, 1, 1).endswith("about 3 busy ones share its one core.")
    assert busy.words(2.4, 2, 2) == ""


async def test_teachers_loss_is_a_line_and_the_hold_out_rows_are_marks(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, _):
            plot = app.screen.query_one("#metric", Plot)
            assert [(level.value, level.name) for level in plot.drawing.levels] == [(2.104, "teacher 2.10")]
            assert len(plot.drawing.points) == 4
            rows = [line[40:] for line in lines_of(app)[6:13]]
            assert any("teacher 2.10" in row for row in rows)
            assert any("o" in row.replace("teacher", "").replace("Label loss", "").replace("now", "") for row in rows)


@pytest.mark.parametrize(("load", "said"), [(2.1, False), (9.2, True)])
async def test_other_programs_that_slow_the_run_are_told(runs_folder, monkeypatch, load, said):
    monkeypatch.setattr(busy, "load", lambda: load)
    monkeypatch.setattr(busy, "cores", lambda: 2)
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, _):
            assert ("! Other programs slow this run: about 7 busy ones share its 2 cores." in text_of(app)) is said


async def test_other_programs_are_nothing_to_a_run_that_is_over(runs_folder, monkeypatch):
    monkeypatch.setattr(busy, "load", lambda: 50.0)
    async with watching(make_run(runs_folder, scene="stopped")) as (app, _):
        assert "Other programs" not in text_of(app)


async def test_reason_that_the_disk_did_not_take_is_heard_through_the_pipe(runs_folder):
    path = make_run(runs_folder)
    word = LastWord()
    control._last_words[path] = word
    lock = held(path)
    lock.__enter__()
    async with watching(path) as (app, pilot):
        error = {"what": "There was no room for a checkpoint.", "why": "The disk is full.", "todo": "Free some."}
        os.write(word.writing, json.dumps(error).encode() + b"\n")
        word.started()
        lock.__exit__(None, None, None)
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "the end is shown")
        assert "✗ There was no room for a checkpoint." in text_of(app)
        assert "The disk is full." in text_of(app)
        await pilot.press("l")
        await until(pilot, lambda: "✗ failed" in lines_of(app)[0], "the run has failed, and is not lost")
    assert control.last_word(path) is None


async def test_line_of_the_log_that_continues_beyond_the_window_is_marked(runs_folder):
    path = make_run(runs_folder)
    words = "the beginning of it " + "x" * 90 + " its end"
    append(path, [{"time": NOW, "kind": "log", "level": "info", "message": words}])
    with held(path):
        async with watching(path) as (app, pilot):

            def marked() -> bool:
                row = next(line for line in lines_of(app) if "the beginning of it" in line)
                return row.rstrip("│ ").endswith("x…")

            await until(pilot, marked, "the row says that it continues")
            window = app.screen.query_one(LogView)
            window.scroll_to(x=200, animate=False)
            await until(pilot, lambda: "its end" in text_of(app), "scrolled to the side")
            row = next(line for line in lines_of(app) if "its end" in line)
            assert row.startswith("│…")
            assert "its end…" not in row


async def test_help_has_groups(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path, size=(100, 70)) as (app, pilot):
            await pilot.press("question_mark")
            await until(pilot, lambda: "Follow the newest line of the log" in text_of(app), "help")
            left = next(line.index("╭─ Help") for line in lines_of(app) if "╭─ Help" in line)
            lines = [line[left + 1 : left + 74].strip() for line in lines_of(app)]
            places = [lines.index(group) for group in ("Run", "Move", "Everywhere")]
            assert places == sorted(places)
            pause = next(number for number, line in enumerate(lines) if "Pause at a safe point" in line)
            leave = next(number for number, line in enumerate(lines) if "a run continues without this window" in line)
            assert places[0] < pause < places[1]
            assert leave > places[2]


async def test_flags_that_resume_takes_are_typed_behind_a_key(runs_folder, monkeypatch):
    path = make_run(runs_folder, scene="stopped")
    started: list[Path] = []

    def start(run: Path, *, last_word: LastWord) -> SimpleNamespace:
        last_word.started()
        started.append(run)
        return SimpleNamespace(poll=lambda: 0)

    monkeypatch.setattr(control.supervisor, "start", start)
    async with watching(path) as (app, pilot):
        await pilot.press("C")
        await until(pilot, lambda: isinstance(app.screen, NameScreen), "it asks")
        assert "steps" in text_of(app)
        line = app.screen.query_one("#name", Input)
        for flags, refusal in (
            ("--seed 5", "seed"),
            ("--stepz 5", "stepz"),
            ("--steps", "steps"),
            ("--help", "help"),
            ("", "No flag"),
        ):
            line.value = flags
            await pilot.press("enter")
            await until(pilot, lambda word=refusal: word in text_of(app), "the refusal")
            assert isinstance(app.screen, NameScreen)
        assert started == []
        line.value = "--steps 4000 --until teacher"
        await pilot.press("enter")
        await until(pilot, lambda: app.screen_stack == app.screen_stack[:1] and started, "it is started")
        settings = Run.open(path).settings
        assert (settings.steps, settings.until) == (4000, "teacher")
