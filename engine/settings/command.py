"""Commands for the user to type: the one of a request, and the one that continues a run."""

from __future__ import annotations

import shlex
from pathlib import Path

from engine.format import exact_bytes
from engine.settings.config import SETTINGS, RunConfig


def until_of(config: RunConfig) -> dict[str, str]:
    """Return the phase after which a run stops, as a setting; a run that is made of another one does not inherit it."""
    return {"until": config.until} if config.until is not None else {}


def command_words(config: RunConfig, program: str = "tiny-distill") -> list[str]:
    """The command that asks for the same run, word by word."""
    words = [program]
    for name, value in {**config.asked(), **until_of(config)}.items():
        if value is True:
            words.append(f"--{name}")
        elif value is False:
            words.append(f"--no_{name}")
        else:
            words += [f"--{name}", exact_bytes(value) if SETTINGS[name].kind == "bytes" else str(value)]
    return words


def command_line(config: RunConfig, program: str = "tiny-distill") -> str:
    """The command that asks for the same run, ready to be pasted into a shell."""
    return shlex.join(command_words(config, program))


def resume_command(path: Path) -> str:
    """The command that continues the run in a folder."""
    return f"tiny-distill --resume --output_dir {shlex.quote(str(path))}"


def how_to_continue(path: Path, first: str = "") -> str:
    """Advice after a run has ended early: its completed work is kept, and this command continues it.

    Args:
        path: the run's folder.
        first: what to do before, a clause that begins with a capital letter; empty when nothing.
    """
    continued = f"{first}, then continue" if first else "Continue"
    return f"Completed work is kept. {continued}: {resume_command(path)}"
