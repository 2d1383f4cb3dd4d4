"""Talking to a student from its result."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from textual.widgets import Static

from engine.machine import safe_child
from engine.talk import sides
from engine.talk.conversation import ChatSession
from engine.talk.speed import speeds
from tests.tiny import tiny_model
from tests.tinydistill_tui.fixtures import make_run
from tests.tinydistill_tui.screen import text_of, until, watching
from tinydistill_tui.screens.finish import FinishScreen
from tinydistill_tui.screens.talk import AnswerPane, TalkScreen

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def talking_run(runs_folder, tmp_path):
    """A finished run whose three models are there."""
    path = make_run(runs_folder, scene="done")
    teacher = tmp_path / "its-teacher"
    for folder in (path / "initial-student", teacher):
        shutil.copytree(tiny_model("llama"), folder)
    shutil.copytree(tiny_model("llama"), path / "student", dirs_exist_ok=True)
    info = json.loads((path / "run.json").read_text())
    info["settings"] |= {"teacher": str(teacher), "student": "from-teacher"}
    (path / "run.json").write_text(json.dumps(info))
    return path


@pytest.fixture
def speakers(tmp_path, monkeypatch):
    """Processes that speak as a model's do, and a file that tells of each."""
    told = tmp_path / "speakers.txt"
    monkeypatch.setenv("SPEAKERS", str(told))
    monkeypatch.setenv("PYTHONPATH", ROOT)
    words = [sys.executable, "-m", "tests.tinydistill_tui.speaker"]
    monkeypatch.setattr(safe_child, "command", lambda module, *more: [*words, *more])
    return told


def alive(told):
    found = []
    for line in told.read_text().splitlines() if told.exists() else []:
        pid = int(line.split()[1])
        try:
            os.kill(pid, 0)
            found.append(pid)
        except ProcessLookupError:
            pass
    return found


async def open_talk(app, pilot):
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, TalkScreen), "the prompt line is there")
    return app.screen


def answers(screen):
    return {pane.id.removeprefix("side-"): pane.answer for pane in screen.query(AnswerPane)}


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_three_models_answer_one_after_the_other_and_are_gone(talking_run, speakers, size):
    async with watching(talking_run, size=size) as (app, pilot):
        screen = await open_talk(app, pilot)
        assert not speakers.exists()  # nothing is loaded before the first question
        await pilot.press(*"why", "space", *"q", "enter")
        await until(pilot, lambda: answers(screen)["teacher"].endswith("why q"), "all have answered")
        await until(pilot, lambda: not screen.answering, "and are gone")
        assert answers(screen) == {
            "after": "student says why q",
            "before": "initial-student says why q",
            "teacher": "its-teacher says why q",
        }
        for words in ("You  why q", "15.0 tokens/s", "student says why q", "its-teacher says why q"):
            assert words in text_of(app), words
        assert [line.split()[2] for line in speakers.read_text().splitlines()] == [
            "student", "initial-student", "its-teacher",
        ]  # fmt: skip
        assert alive(speakers) == []
        await pilot.press("enter")  # an empty line asks the first sample's prompt
        await until(pilot, lambda: answers(screen)["teacher"].endswith("visit Porto is"), "asked again")
        await until(pilot, lambda: not screen.answering, "and are gone again")
        assert {name: len(session.messages) for name, session in screen._sessions.items()} == dict.fromkeys(
            sides.SIDES, 4
        )
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "back to the result")
        assert speeds(talking_run) == dict.fromkeys(sides.SIDES, 15.0)
        about = app.screen.query_one("#student", Static)
        await until(pilot, lambda: "It wrote 15.0 tokens/s (its teacher 15.0)" in str(about.visual), "its speed")


async def test_no_two_models_are_in_memory_together(talking_run, speakers, monkeypatch):
    together = []
    async with watching(talking_run) as (app, pilot):
        screen = await open_talk(app, pilot)
        real = ChatSession._start

        def counted(session):
            together.append(len(alive(speakers)))
            return real(session)

        monkeypatch.setattr(ChatSession, "_start", counted)
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: bool(answers(screen)["teacher"]) and not screen.answering, "all have answered")
    assert together == [0, 0, 0]


async def test_escape_stops_the_answers_and_then_goes_back(talking_run, speakers, monkeypatch):
    monkeypatch.setenv("SILENT", "student")
    async with watching(talking_run) as (app, pilot):
        screen = await open_talk(app, pilot)
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: len(alive(speakers)) == 1, "the student thinks")
        await pilot.press("x", "enter")
        await until(pilot, lambda: "still answering; Esc stops them" in text_of(app), "one question at a time")
        await pilot.press("escape")
        await until(pilot, lambda: not screen.answering, "stopped")
        assert app.screen is screen
        assert alive(speakers) == []
        assert screen._sessions["after"].messages == []  # what was not answered was not said
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "back to the result")


async def test_a_second_escape_goes_back_while_the_answers_stop(talking_run, speakers, monkeypatch):
    monkeypatch.setenv("SILENT", "student")
    async with watching(talking_run) as (app, pilot):
        screen = await open_talk(app, pilot)
        await pilot.press("enter")
        await until(pilot, lambda: len(alive(speakers)) == 1, "the student thinks")
        with monkeypatch.context() as slow:
            slow.setattr(ChatSession, "stop", lambda session: None)  # it takes long
            await pilot.press("escape")
            await until(pilot, lambda: "Stopping" in text_of(app), "it says so")
        assert screen.answering
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "back to the result", 10)


async def test_no_process_outlives_the_program(talking_run, speakers, monkeypatch):
    monkeypatch.setenv("SILENT", "student")
    async with watching(talking_run) as (app, pilot):
        await open_talk(app, pilot)
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: len(alive(speakers)) == 1, "the student thinks")
        app.exit()
    ended_by = time.monotonic() + 120
    while alive(speakers) and time.monotonic() < ended_by:
        time.sleep(0.05)
    assert alive(speakers) == []


async def test_a_model_that_is_gone_or_too_large_says_so_and_the_others_answer(talking_run, speakers, monkeypatch):
    shutil.rmtree(talking_run / "initial-student")
    real = sides.sides_of
    monkeypatch.setattr(
        "tinydistill_tui.screens.talk.sides_of",
        lambda run, available: [side if side.name != "teacher" else real(run, 1)[2] for side in real(run, available)],
    )
    async with watching(talking_run, size=(120, 40)) as (app, pilot):
        screen = await open_talk(app, pilot)
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: answers(screen)["after"] == "student says hi" and not screen.answering, "answered")
        await until(pilot, lambda: "are free" in text_of(app), "why the teacher is not asked")
        assert "initial-student" in answers(screen)["before"]
        assert len(speakers.read_text().splitlines()) == 1


@pytest.mark.slow
async def test_what_is_said_is_what_the_command_says(talking_run, capfd):
    from engine.cli import chat

    async with watching(talking_run) as (app, pilot):
        screen = await open_talk(app, pilot)
        await pilot.press(*"Who", "enter")
        await until(pilot, lambda: bool(screen.query(AnswerPane)) and not screen.answering, "answered", 300)
        said = answers(screen)["after"]
    assert chat.main([str(talking_run), "--prompt", "Who"]) == 0
    # A model of random weights says bytes that a terminal would obey: the screen shows signs in their place.
    letters = [re.sub(r"[^!-~]", "", words) for words in (capfd.readouterr().out, said)]
    assert letters[0] == letters[1]
    assert letters[0]


async def test_run_that_is_gone_is_a_sentence_and_the_screen_stays(runs_folder):
    path = make_run(runs_folder, scene="done")
    async with watching(path) as (app, pilot):
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TalkScreen), "the talk is there")
        shutil.rmtree(path)
        await pilot.press(*"hello", "enter")
        await until(pilot, lambda: "The run's folder is gone" in text_of(app), "it is said")
        await until(pilot, lambda: not app.screen.answering, "and another question can be asked")
        app.action_take_screenshot()
        assert not path.exists()  # nothing makes the folder again
    assert not app.return_code
