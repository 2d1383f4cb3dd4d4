"""Flags of the program: each of them reaches the wizard, a run's screen or the lines."""

from __future__ import annotations

import pytest

from engine.settings.config import SETTINGS
from tests.tinydistill_tui.fixtures import make_run
from tinydistill_tui import app, command

pytestmark = pytest.mark.usefixtures("same_machine")


@pytest.fixture
def reached(monkeypatch):
    """Return where a command leads: the screen with its settings and run, or lines."""
    monkeypatch.setattr(command.screenless, "reason", lambda: None)
    found = []

    def run_app(values, *, attach, source, options):
        found.append(("screen", dict(values), attach))
        return 0

    def run_headless(config, front_end):
        found.append(("lines", config, None))
        return 0

    monkeypatch.setattr(app, "run_app", run_app)
    monkeypatch.setattr(command, "run_headless", run_headless)

    def run(*words):
        assert command.main(words) == 0
        return found.pop()

    return run


def test_a_phase_to_stop_after_reaches_the_wizard(reached):
    assert reached("--demo", "--until", "teacher") == ("screen", {"demo": True, "until": "teacher"}, None)


@pytest.mark.parametrize("flag", ["dry_run", "json"])
def test_what_asks_for_lines_gets_lines(reached, flag):
    kind, config, _ = reached("--demo", f"--{flag}")
    assert kind == "lines"
    assert getattr(config, SETTINGS[flag].field) is True


def test_a_run_to_resume_is_shown_with_the_key_that_resumes_it(reached, runs_folder):
    path = make_run(runs_folder, scene="stopped")
    kind, _, attached = reached("--resume", "--output_dir", str(path))
    assert (kind, attached) == ("screen", path)
