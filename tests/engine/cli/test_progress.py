"""Following a run's events from outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.channel.events import Tail
from engine.cli.progress import LineView, follow

START = {"time": 1.0, "kind": "run_started"}
RESUMED = {"time": 5.0, "kind": "run_resumed"}


def finished(status: str, exit_code: int) -> dict[str, Any]:
    return {"time": 3.0, "kind": "run_finished", "status": status, "exit_code": exit_code}


class Shown:
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def show(self, event: dict[str, Any]) -> None:
        self.kinds.append(event["kind"])

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("before", "later", "exit_code"),
    [
        ([START], [finished("done", 0)], 0),
        ([START, finished("stopped", 130), RESUMED], [finished("done", 0)], 0),
        ([START, finished("failed", 4), RESUMED], [finished("stopped", 130)], 130),
        ([START, finished("stopped", 130), RESUMED, finished("stopped", 130), RESUMED], [finished("failed", 3)], 3),
        ([START, finished("done", 0), RESUMED], [], 4),  # killed without a word
        ([START], [], 4),
    ],
)
def test_last_end_counts_once_no_supervisor_is_there(tmp_path: Path, before: Any, later: Any, exit_code: int) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in before))
    asked = 0

    def alive() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:
            with path.open("a") as file:
                file.writelines(json.dumps(event) + "\n" for event in later)
        return asked <= 2

    view = Shown()
    assert follow(view, alive=alive, tail=Tail(path)) == exit_code
    assert view.kinds == [event["kind"] for event in [*before, *later]]


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_break_between_words_on_a_terminal_and_nowhere_in_a_file(capsys, monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    message = "The hold-out has only 217 tokens: figures measured with it are rough."
    LineView().show({"time": 1.0, "kind": "log", "level": "warning", "message": message})
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines) == f"warning: {message}"
    assert (len(lines), max(map(len, lines)) <= 40) == ((3, True) if terminal else (1, False))
