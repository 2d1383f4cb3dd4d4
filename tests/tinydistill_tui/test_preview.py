"""The preview of the text: the first rows as they will be learned from, made elsewhere and never waited for."""

import json
import os
import sys
import threading
import time

import pytest

from engine.data.row_preview import ShownPiece, ShownRow
from engine.model_files.demo import DEMO_TEACHER
from tests.tinydistill_tui.screen import lines_of, text_of, until
from tests.tinydistill_tui.wizard import until_data, until_models, wizard
from tinydistill_tui.screens import data
from tinydistill_tui.view.data_facts import printable, row_text, row_words
from tinydistill_tui.work import first_rows, helper

ROW = ShownRow(
    48,
    48,
    (
        ShownPiece("border", "note-00.md"),
        ShownPiece("learned", "# Note 0<|endoftext|>"),
        ShownPiece("border", "note-01.md"),
        ShownPiece("learned", "# Note 1"),
    ),
)
CHAT = ShownRow(
    20,
    6,
    (
        ShownPiece("border", "chat 1"),
        ShownPiece("read", "<user>Who learns?<assistant>"),
        ShownPiece("learned", "The student."),
    ),
)


PYTHON = [sys.executable]


def in_the_preview(app):
    """The lines of the preview."""
    return [line.strip(" │|") for line in lines_of(app)]


async def to_the_data(app, pilot):
    await pilot.press("enter")
    await until_models(app, pilot)
    await pilot.press("enter")
    return await until_data(app, pilot)


@pytest.fixture
def asked(monkeypatch):
    """Rows come at once; what was asked for."""
    requests = []

    def make(request, cancelled):
        requests.append(request)
        return [ROW, CHAT], ""

    monkeypatch.setattr(first_rows, "make", make)
    monkeypatch.setattr(data, "ROWS_AFTER_SECONDS", 0.01)
    return requests


def test_borders_are_lines_and_what_is_learned_is_between_marks_unless_all_is():
    assert row_text(ROW, 24).plain.split("\n") == [
        "── note-00.md ──────────",
        "# Note 0<|endoftext|>",
        "── note-01.md ──────────",
        "# Note 1",
    ]
    assert row_words(ROW) == "48 tokens, all are learned"
    assert row_text(CHAT, 24).plain.split("\n")[1] == "<user>Who learns?<assistant>»The student.«"
    assert row_words(CHAT) == "20 tokens, 6 are learned: »these«"


def test_text_has_nothing_in_it_that_a_terminal_would_obey():
    assert printable("a\x1b[2Jb\r\nc\td\x07\x9b1m") == "a\ufffd[2Jb\nc\td\ufffd\ufffd1m"


async def test_rows_come_before_the_documents_and_both_can_be_turned_to(notes, asked):
    async with wizard({"data": str(notes), "teacher": str(DEMO_TEACHER), "sequence_length": 64}) as (app, pilot):
        screen = await to_the_data(app, pilot)
        await until(pilot, lambda: "First rows  1 of 2" in text_of(app), "the rows are there")
        assert asked[-1].data == str(notes)
        assert asked[-1].sequence_length == 64
        assert "48 tokens, all are learned" in text_of(app)
        assert "# Note 0<|endoftext|>" in in_the_preview(app)
        assert "── note-01.md " + "─" * 58 in in_the_preview(app)
        await pilot.resize_terminal(60, 30)
        await until(pilot, lambda: "── note-01.md " + "─" * 38 in in_the_preview(app), "the border is shorter")
        await pilot.resize_terminal(80, 24)
        screen.query_one("#preview").focus()
        await pilot.press("right")
        assert "20 tokens, 6 are learned: »these«" in text_of(app)
        await pilot.press("right")
        assert "Document 1 of 8  note-00.md" in text_of(app)
        assert "as it was read" in text_of(app)
        await pilot.press("left", "left", "left")
        assert "Document 8 of 8" in text_of(app)


async def test_another_length_has_other_rows_and_who_reads_a_document_continues_reading_it(notes, asked):
    async with wizard({"data": str(notes), "teacher": str(DEMO_TEACHER)}) as (app, pilot):
        screen = await to_the_data(app, pilot)
        await until(pilot, lambda: "First rows" in text_of(app), "the rows are there")
        screen.query_one("#preview").focus()
        await pilot.press("left", "left")
        assert "Document 7 of 8" in text_of(app)
        screen.query_one("#field-sequence_length").focus()
        await pilot.press(*"32")
        await until(pilot, lambda: asked[-1].sequence_length == 32, "other rows are asked for")
        await pilot.pause(0.1)
        assert "Document 7 of 8" in text_of(app)


async def test_why_there_are_no_rows_stands_above_the_document(notes, monkeypatch):
    monkeypatch.setattr(data, "ROWS_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(first_rows, "make", lambda *_: ([], "The tokenizer in /models/x cannot be loaded."))
    async with wizard({"data": str(notes), "teacher": str(DEMO_TEACHER)}) as (app, pilot):
        await to_the_data(app, pilot)
        await until(pilot, lambda: "The rows cannot be shown" in text_of(app), "it says so")
        assert "! The rows cannot be shown: The tokenizer in /models/x cannot be loaded." in in_the_preview(app)
        assert "# Note 0" in in_the_preview(app)


async def test_rows_of_a_choice_that_changed_are_ended_and_never_shown(notes, monkeypatch):
    ended = threading.Event()

    def make(request, cancelled):
        if request.sequence_length != 32:
            while not cancelled():
                ended.wait(0.01)
            ended.set()
            return [ROW], ""
        return [CHAT], ""

    monkeypatch.setattr(data, "ROWS_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(first_rows, "make", make)
    async with wizard({"data": str(notes), "teacher": str(DEMO_TEACHER)}) as (app, pilot):
        screen = await to_the_data(app, pilot)
        await until(pilot, lambda: "rows are being made" in text_of(app), "it says that rows are on their way")
        assert "Document 1 of 8" in text_of(app)
        screen.query_one("#field-sequence_length").focus()
        await pilot.press(*"32")
        await until(pilot, lambda: "First rows  1 of 1" in text_of(app), "the rows of the new choice are there")
        assert ended.wait(60)
        await pilot.pause(0.05)
        assert "20 tokens" in text_of(app)


def test_process_is_ended_when_nobody_wants_its_answer(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    assert helper.ask([*PYTHON, "-c", code], "", lambda: (tmp_path / "pid").exists()) is None
    pid = int((tmp_path / "pid").read_text() or 0)
    assert not pid or not os.path.exists(f"/proc/{pid}")


def test_process_that_fails_says_why_in_its_last_line():
    answer = helper.ask(
        [*PYTHON, "-c", "import sys; sys.stderr.write('a warning\\n'); sys.exit('no room')"], "", lambda: False
    )
    assert answer == helper.HelperOutput("", "no room")
    assert helper.ask([*PYTHON, "-c", "import os; os._exit(3)"], "", lambda: False).problem.startswith(
        "It ended with exit code 3"
    )


@pytest.mark.parametrize("reads", ["at once", "late", "never"])
def test_long_request_and_long_answer_do_not_wait_for_each_other(monkeypatch, reads):
    monkeypatch.setattr(helper, "_POLL_SECONDS", 0.01)
    text = "é" * 300_000
    program = "import sys, time; " + {
        "at once": "sys.stdout.write(sys.stdin.read() * 2)",
        "late": "time.sleep(0.2); sys.stdout.write(sys.stdin.read() * 2)",
        "never": "sys.stdout.write('é' * 600_000)",
    }[reads]  # fmt: skip
    waited = time.monotonic()
    answer = helper.ask([*PYTHON, "-X", "utf8", "-c", program], text, lambda: time.monotonic() > waited + 60)
    assert answer is not None, "it waits for the rest of the request"
    assert answer.text == text * 2


@pytest.mark.slow  # a process that imports transformers, on each screen
async def test_real_rows_of_real_notes(notes, monkeypatch):
    monkeypatch.setattr(data, "ROWS_AFTER_SECONDS", 0.01)
    async with wizard({"data": str(notes), "teacher": str(DEMO_TEACHER)}) as (app, pilot):
        screen = await to_the_data(app, pilot)
        await until(pilot, lambda: "First rows" in text_of(app), "the rows are there", 60)
        assert "all are learned" in text_of(app)
        assert any("── note-" in line for line in in_the_preview(app))
        chat = notes.parent / "chat.jsonl"
        chat.write_text(
            "".join(json.dumps({"messages": [{"role": "user", "content": f"question {n}"},
                                             {"role": "assistant", "content": f"answer {n}"}]}) + "\n"
                    for n in range(40))
        )  # fmt: skip
        screen.query_one("#field-data").value = str(chat)
        await until(pilot, lambda: "User: question" in text_of(app), "turns are written plainly", 60)
