import subprocess
import sys

import pytest

from engine.cli.progress import wants_lines
from engine.errors import SettingsError, Stopped
from engine.settings.config import RunConfig
from tinydistill_tui import cli, command
from tinydistill_tui.ask import QUESTIONS, ask

pytestmark = pytest.mark.usefixtures("same_machine")


def asked(lines, values=None):
    """Return the result of these typed lines, and all output."""
    written, rest = [], list(lines)

    def read(prompt):
        written.append(prompt)
        if not rest:
            raise EOFError
        return rest.pop(0)

    config = ask(values or {}, read=read, write=written.append)
    assert rest == []
    return config, written


def test_every_empty_line_leaves_the_answer_to_the_planner():
    config, written = asked([""] * len(QUESTIONS) + ["y"])
    assert config.use_recommended
    assert config.asked() == {}
    assert [line for line in written if line.endswith(": ")] == [f"{name}: " for name in QUESTIONS]


def test_bad_line_is_refused_in_the_words_of_the_command_line_and_asked_again():
    config, written = asked(["", "", "", "much", "2GB", "0", "7", "", ""])
    assert (config.memory_budget, config.samples) == (2 * 10**9, 7)
    assert "memory_budget much: expected a size such as 2GB, 1.5GiB or 700MB." in written
    with pytest.raises(SettingsError) as caught:
        RunConfig.parse({"samples": "0"})
    assert f"samples 0: {caught.value.problems[0].accepted}." in written


def test_what_was_given_is_not_asked_for_and_the_demo_asks_nothing():
    config, written = asked([*[""] * (len(QUESTIONS) - 1), "maybe", "yes"], {"samples": 5})
    assert config.samples == 5
    assert "samples: " not in written
    assert "maybe: expected yes or no." in written
    config, written = asked(["y"], {"demo": True})
    assert config.demo
    assert [line for line in written if line.endswith(": ")] == []


def test_the_plan_stands_before_the_question_whether_to_start():
    _, written = asked(["y"], {"demo": True})
    start = written.index("Start? [Y/n] ")
    told = " ".join(written[:start])
    assert "The teacher reads 1,200 rows" in told
    assert "Then a student with 4 of the teacher's layers learns" in told
    assert "on the disk." in told
    assert "of memory;" in told


def test_sentences_break_between_words_in_any_width(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "48")
    lines = iter(["y"])
    ask({"demo": True}, read=lambda prompt: next(lines))
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) < 48
    _, written = asked(["y"], {"demo": True})
    assert narrow.split() == " ".join(line for line in written if not line.startswith("Start?")).split()


def test_a_run_that_was_asked_for_is_shown_in_lines_on_a_terminal_too(monkeypatch):
    seen = []
    monkeypatch.setattr(command, "ask", lambda values: RunConfig.parse({"demo": True}))
    monkeypatch.setattr(command, "run_headless", lambda config, front_end: seen.append(front_end) or 0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert cli.main(["--ask"]) == 0
    assert wants_lines(seen[0].plain) == "as asked by --plain"


@pytest.mark.parametrize("lines", [[""] * len(QUESTIONS) + ["n"], ["", ""]])
def test_no_and_the_end_of_the_input_start_nothing(lines):
    with pytest.raises(Stopped, match="Nothing was started"):
        asked(lines)


@pytest.mark.usefixtures("machine_is_measured")
def test_the_program_asks_on_any_terminal_and_shows_the_plan(runs_folder):
    result = subprocess.run(
        [sys.executable, "-m", "tinydistill_tui", "--ask", "--demo", "--dry_run", "--json"],
        input="", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '"teacher"' in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert list(runs_folder.iterdir()) == []
