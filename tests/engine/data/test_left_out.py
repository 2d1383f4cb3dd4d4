"""Reports of text that is left out: amounts, reasons, places; a warning for much of it, a question for most of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.channel.events import Event, read_events
from engine.data.left_out import ASKS_FOR_LOSSES, CODE, MostlyLeftOut, left_out
from engine.data.sources import open_source
from engine.data.survey import survey
from engine.data.tally import Tally
from engine.errors import DataError
from engine.model_files.spec import read_spec
from tests.end_to_end import program
from tests.end_to_end.program import QUICK
from tests.engine.data.small_data import make_chat_model, run_prepare
from tests.tiny import tiny_model, tiny_texts
from tests.tinydistill_tui.terminal import terminal


def lossy(path: Path, good: int, bad: int) -> Path:
    """Rows with a text and rows with a number in its place, mixed."""
    rows: list[dict[str, Any]] = [{"text": f"{n} {text}"} for n, text in enumerate(tiny_texts(good))]
    for number in range(bad):
        rows.insert(2 * number, {"text": number})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lossy_chats(path: Path, good: int, bad: int) -> Path:
    """Questions with answers, and questions alone."""
    lines = []
    for number in range(good + bad):
        turns = [{"role": "user", "content": f"question {number}"}]
        if number < good:
            turns.append({"role": "assistant", "content": f"answer {number}"})
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines))
    return path


def told(folder: Path, code: str = CODE) -> list[Event]:
    return [event for event in read_events(folder / "events.jsonl") if event.get("code") == code]


@pytest.mark.parametrize(("lost", "is_much", "is_most"), [(0, False, False), (10, False, False), (11, True, False)])
@pytest.mark.parametrize("of", ["documents", "bytes"])
def test_what_is_much_and_what_is_most(lost: int, is_much: bool, is_most: bool, of: str) -> None:
    for count, much, most in ((lost, is_much, is_most), (50, True, False), (51, True, True), (100, True, True)):
        tally = Tally()
        tally.documents = 100 - count if of == "documents" else 100
        if of == "documents" and count:
            tally.skip("broken JSON", count)
        if of == "bytes":
            tally.skip_file("damaged gzip file", count)
        found = left_out(tally, files=5, total_bytes=100, conversations=False)
        assert (found.is_much, found.is_most) == (much, most)


def test_the_sentences_say_how_much_why_and_where(tmp_path: Path) -> None:
    lossy(tmp_path / "a.jsonl", good=6, bad=2)
    (tmp_path / "b.jsonl").write_text('{"text": "good words"}\n{"text": "cut\n')
    (tmp_path / "c.zip").write_bytes(b"PK\3\4" + b"0" * 1020)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = survey(str(tmp_path)).left_out
    assert found is not None
    share = f"{1024 / (1024 + (tmp_path / 'a.jsonl').stat().st_size + (tmp_path / 'b.jsonl').stat().st_size):.0%}"
    assert found.sentences() == (
        "3 of 10 documents left out: 2 × record whose 'text' is no text, 1 × broken JSON, for example a.jsonl 1. "
        f"1 of 3 files, {share.replace('%', ' %')} of the bytes (1.0 KiB), is not read: "
        "1 × .zip archive (unpack it first), for example c.zip. "
        "No text of the data: 1 × .png file."
    )


def test_pictures_beside_notes_are_no_loss(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("words of mine")
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG" + b"0" * 10_000)
    found = survey(str(tmp_path)).left_out
    assert found is not None
    assert found.share == 0
    assert found.sentences() == "No text of the data: 30 × .png file."


def test_lines_of_one_text_are_told_and_are_not_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Größe\n".encode() * 50 + b"Gr\xf6\xdfe\n" * 3)
    found = survey(str(tmp_path)).left_out
    assert found is not None
    assert found.share == 0
    assert "3 × line that is not UTF-8" in found.sentences()


@pytest.mark.parametrize(("good", "bad", "level"), [(60, 0, None), (60, 5, "info"), (40, 40, "warning")])
def test_prepare_tells_what_it_left_out(tmp_path: Path, good: int, bad: int, level: str | None) -> None:
    result = run_prepare(lossy(tmp_path / "a.jsonl", good, bad), tmp_path / "tokens.h5")
    events = told(tmp_path)
    assert [event["level"] for event in events] == ([level] if level else [])
    if level:
        start = f"{bad} of {good + bad} documents left out: {bad} × record whose 'text' is no text"
        assert events[0]["message"].startswith(start)
        assert result.left_out == events[0]["message"]


@pytest.mark.parametrize("chats", [False, True])
def test_more_than_half_is_refused_unless_it_is_allowed(tmp_path: Path, chats: bool) -> None:
    data = (lossy_chats if chats else lossy)(tmp_path / "a.jsonl", 60, 61)
    other: dict[str, Any] = {"student": None, "teacher": read_spec(make_chat_model(tmp_path / "model"))}
    with pytest.raises(MostlyLeftOut) as caught:
        run_prepare(data, tmp_path / "tokens.h5", **other)
    noun, reason = ("conversations", "without an answer") if chats else ("documents", "is no text")
    assert f"61 of 121 {noun} left out: 61 × " in caught.value.what
    assert reason in caught.value.what
    assert "--allow_losses" in caught.value.todo
    assert not list(tmp_path.glob("tokens*"))
    assert told(tmp_path, ASKS_FOR_LOSSES)
    result = run_prepare(data, tmp_path / "tokens.h5", **other, allow_losses=True)  # the way out
    assert result.documents + result.holdout_documents == 60
    assert told(tmp_path)[-1]["level"] == "warning"


def test_an_error_about_too_little_text_names_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "The only one."}\n' + '{"text": "cut\n' * 40)
    with pytest.raises(DataError, match="too little text") as caught:
        run_prepare(tmp_path / "a.jsonl", tmp_path / "tokens.h5")
    assert "40 of 41 documents left out" in caught.value.why


def test_a_look_knows_conversations_without_answers(tmp_path: Path) -> None:
    found = survey(str(lossy_chats(tmp_path / "a.jsonl", 30, 31))).left_out
    assert found is not None
    assert found.is_most
    assert found.sentences().startswith("31 of 61 conversations left out: 31 × conversation without an answer")


@pytest.fixture
def request_words(tmp_path: Path) -> list[object]:
    teacher, student = tiny_model("llama"), tiny_model("llama", num_layers=2)
    data = lossy(tmp_path / "a.jsonl", 60, 70)
    return [
        *("--teacher", teacher, "--student", student, "--data", data, "--output_dir", tmp_path / "run"),
        *(*QUICK, "--device", "cpu", "--steps", "1", "--until", "prepare"),
    ]


START = "70 of 130 documents left out: 70 × record whose 'text' is no text, for example a.jsonl 1."


@pytest.mark.usefixtures("machine_is_measured")
def test_a_dry_run_tells_it_and_ends_as_the_run_would(tmp_path: Path, request_words: list[object]) -> None:
    done = program.run(*request_words, "--dry_run")
    assert done.returncode == 2
    assert f"warning: {START}" in done.stdout
    assert "--allow_losses" in done.stderr
    done = program.run(*request_words, "--dry_run", "--allow_losses", "--json")
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(event["level"], event["message"]) for event in events if event["kind"] == "log"] == [("warning", START)]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_ends_with_2_and_goes_with_what_its_message_names(tmp_path: Path, request_words: list[object]) -> None:
    done = program.run(*request_words)
    assert done.returncode == 2
    assert START in done.stderr
    assert not (tmp_path / "run").exists()
    done = program.run(*request_words, "--allow_losses")
    assert done.returncode == 0, done.stderr
    assert f"warning: {START}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2), ("", 2)])
def test_a_person_is_asked(tmp_path: Path, request_words: list[object], answer: str, code: int) -> None:
    with terminal(["--no-tui", *map(str, request_words)], size=(200, 40)) as screen:
        screen.wait_for("Continue without the documents that are left out? [y/N]", 120)
        screen.type(f"{answer}\r")
        assert screen.wait(120) == code
    assert (tmp_path / "run").exists() == (code == 0)


@pytest.mark.slow
def test_what_only_the_first_phase_finds_is_asked_for_then(tmp_path: Path) -> None:
    """A template refuses what a look at the text cannot know; the run's folder is kept for the answer."""
    model = make_chat_model(tmp_path / "model")
    refuses = "'question 1' in messages[0]['content'] or 'question 2' in messages[0]['content']"
    template = "{% if " + refuses + " %}{{ raise_exception('no') }}{% endif %}"
    (model / "chat_template.jinja").write_text(template + (model / "chat_template.jinja").read_text())
    data = lossy_chats(tmp_path / "a.jsonl", 300, 0)  # more than a look tries with the template
    words: list[object] = ["--no-tui", "--teacher", model, "--student", "from-teacher"]
    words += ["--student_layers", 1, "--data", data, "--output_dir", tmp_path / "run", *QUICK, "--device", "cpu"]
    with terminal([str(word) for word in [*words, "--steps", "1", "--until", "prepare"]], size=(200, 40)) as screen:
        screen.wait_for("Continue without the documents that are left out? [y/N]", 120)
        screen.type("y\r")
        assert screen.wait(120) == 0
    assert told(tmp_path / "run")[-1]["message"].startswith("222 of 300 conversations left out")


def test_the_report_has_the_counts_by_reason(tmp_path: Path) -> None:
    from engine.run.report import _data

    prepared = {
        "source": "a",
        "documents": 60,
        "skipped": {"broken JSON": 3},
        "left_out": "3 of 63 …",
        "read_as": ["As it is."],
    }
    assert _data(prepared) == {
        "source": "a",
        "documents": 60,
        "left_out": {"broken JSON": 3},
        "told": "3 of 63 … As it is.",
    }


def test_nothing_left_out_says_nothing(tmp_path: Path) -> None:
    found = survey(str(lossy(tmp_path / "a.jsonl", 5, 0)))
    assert found.left_out is not None
    assert found.left_out.sentences() == ""
    assert found.notes == ()
    assert open_source(str(tmp_path), text_field=None, split="train").skipped == {}
