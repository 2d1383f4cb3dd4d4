"""A request as the command that a person would type."""

from __future__ import annotations

import shlex

from engine.config import SETTINGS, RunConfig
from engine.format import exact_bytes


def command_words(config: RunConfig, program: str = "tiny-distill") -> list[str]:
    """The command that asks for the same run, word by word."""
    words = [program]
    for name, value in config.asked().items():
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
