"""``tinydistill-tui`` with flags: the wizard that begins with them, or with ``--no-tui`` the run without a screen.

Textual is imported only when there is a screen to draw on. Where standard output is not a terminal the run continues
without one, and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.cli import arguments
from engine.cli.distill import guarded, run_headless
from engine.run import launch
from engine.run.folder import Run
from engine.run.onward import RECORDS, START
from engine.settings.command import until_of
from engine.settings.config import SETTINGS, RunConfig
from tinydistill_tui.ask import ask
from tinydistill_tui.terminal import screenless

DESCRIPTION = "The wizard: this machine, the models, the text, the plan and the run."


def main(words: Sequence[str]) -> int:
    """Run ``tinydistill-tui`` with these words."""
    return guarded(words, _main)


def _main(words: Sequence[str]) -> int:
    typed, front_end = arguments.parse(
        words, program="tinydistill-tui", description=DESCRIPTION, extend=_screen_switches
    )
    switches = front_end.switches
    reason = "" if switches.pop("no_tui", False) else screenless.reason()
    asks = switches.pop("ask", False)
    config = launch.config_from(typed) if reason is not None or typed else RunConfig()
    if reason is None and (config.json_events or config.dry_run):
        reason = ""  # these are lines
    if reason and not config.json_events:
        sys.stderr.write(f"No screen, {reason}: lines of text instead.\n")
    asks = asks or bool(reason and "attach" not in switches and _needs_answers(config))
    if asks and not config.resume:
        reason = reason or ""
        of_command = {
            name: value
            for name, value in typed.items()
            if SETTINGS[name].group == "command" and name not in (START, RECORDS)  # these are in the config already
        }
        config = ask({**config.asked(), **of_command})
        front_end = dataclasses.replace(front_end, plain=True)  # nothing is redrawn
    if reason is not None:
        if "attach" in switches:
            from engine.cli.distill import attach

            return attach(Run.open(Path(switches["attach"])), config, front_end)
        return run_headless(config, front_end)
    from tinydistill_tui.app import run_app
    from tinydistill_tui.terminal.appearance import draws_only_ascii

    attached = Path(switches.pop("attach")) if "attach" in switches else config.output_dir if config.resume else None
    if attached is not None:
        Run.open(attached)  # a folder that holds no run is said before the screen is taken
    if draws_only_ascii(sys.stdout.encoding, os.environ.get("TERM", "")):
        switches["ascii"] = True
    return run_app({**config.asked(), **until_of(config)}, attach=attached, source=_source(typed), options=switches)


def _needs_answers(config: RunConfig) -> bool:
    """Whether a user at a terminal without a screen has yet to say what to run; a script gets the error instead."""
    at_a_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not config.json_events
    named = config.demo or config.use_recommended or config.resume or (config.teacher and config.student)
    return at_a_terminal and not named


def _source(typed: Mapping[str, Any]) -> str:
    """Return where the settings came from, as the first screen says it."""
    if "profile" not in typed:
        return "from the command line"
    profile = f"from the profile {typed['profile']}"
    return profile if len(typed) == 1 else f"{profile} and the command line"


def _screen_switches(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Screen")
    group.add_argument("--no_tui", action="store_true", help="The same run without a screen")
    group.add_argument("--ask", action="store_true", help="Ask for missing settings line by line, without a screen")
    group.add_argument("--attach", metavar="DIR", help="Watch the run in this folder")
    group.add_argument("--ascii", action="store_true", help="Draw with plain ASCII characters")
    group.add_argument("--no_mouse", action="store_true", help="Leave the mouse to the terminal")
    group.add_argument("--no_animation", action="store_true", help="No animations")
