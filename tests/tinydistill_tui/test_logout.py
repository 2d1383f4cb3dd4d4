"""A run outlives its window; whether it outlives a logout is the system's to say."""

import os
from pathlib import Path

import pytest

from tests.tinydistill_tui.fixtures import held, make_run
from tests.tinydistill_tui.screen import text_of, until, watching
from tinydistill_tui.work import logout

SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
MANAGER = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-terminal.scope\n"
SERVICE = "0::/system.slice/cron.service\n"


@pytest.mark.parametrize(
    ("group", "kills", "lingers", "words"),
    [
        (SESSION, False, False, ""),
        (SESSION, True, False, "once loginctl enable-linger, then start it with systemd-run --user --scope"),
        (SESSION, True, True, "alive, start it with systemd-run --user --scope tinydistill-tui."),
        (MANAGER, False, False, "To keep it alive: loginctl enable-linger."),
        (MANAGER, True, True, ""),
        (SERVICE, True, False, ""),
    ],
)
def test_advice_is_given_only_where_a_run_would_end(group, kills, lingers, words):
    said = logout.advice(group, kills=kills, lingers=lingers)
    assert words in said
    assert bool(words) == bool(said)


def test_the_system_is_asked_about_the_control_group_of_the_run(tmp_path, monkeypatch):
    for name, answer in (("loginctl", "Linger=no"), ("busctl", "b true")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{answer}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    groups = {"/proc/77/cgroup": SESSION, "/proc/self/cgroup": SERVICE}
    monkeypatch.setattr(Path, "read_text", lambda path, **_: groups[str(path)])
    assert "systemd-run" in logout.warning(77)
    assert logout.warning(None) == ""


def test_where_there_is_no_systemd_nothing_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(Path, "read_text", lambda path, **_: SESSION)
    assert logout.warning(None) == ""
    assert logout._answer("loginctl") == ""


async def test_leaving_tells_it(runs_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(logout, "warning", lambda pid: asked.append(pid) or "This system ends it when you log out.")
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press("q")
            await until(pilot, lambda: "Leave it running" in text_of(app), "it asks")
            assert "does not affect it. This system ends it" in text_of(app)
            assert asked == [48213]
