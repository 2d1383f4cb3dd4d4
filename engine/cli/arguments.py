"""The command line: RunConfig defines all flags, their help and their checks.

argparse splits the arguments; RunConfig validates them. All problems are therefore reported at once, with the same
texts as in the wizard, and ``--help`` needs neither torch nor half a second. Flags may be typed with ``_`` or ``-``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from engine.errors import Problem, SettingsError
from engine.settings.config import GROUPS, SETTINGS, RunConfig
from engine.settings.describe import SettingInfo, suggestion
from engine.version import __version__


@dataclass(frozen=True)
class FrontEnd:
    """Switches of the terminal, which are not settings of a run.

    Attributes:
        debug: show tracebacks.
        plain: lines instead of a progress bar.
        switches: the other switches that a program asked for, by name.
    """

    debug: bool = False
    plain: bool = False
    switches: dict[str, Any] = field(default_factory=dict)


def parse(
    words: Sequence[str],
    *,
    program: str,
    description: str,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[dict[str, Any], FrontEnd]:
    """Parse a command line; the values are strings and not validated.

    Args:
        words: the arguments, without the program's name.
        program: the name shown in the help.
        description: one sentence for the help.
        extend: adds the program's own switches.

    Returns:
        The settings that were typed, by name, and the terminal's switches.

    Raises:
        SettingsError: unknown flags, or a flag without its value.
        SystemExit: 0 after ``--help`` or ``--version``.
    """
    parser = _Parser(
        prog=program,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_wide,
        usage=f"{program} [flags]",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    terminal = parser.add_argument_group("Terminal")
    terminal.add_argument("--plain", action="store_true", help="Lines of text instead of a progress bar")
    terminal.add_argument("--debug", action="store_true", help="Show the traceback of an error")
    if extend:
        extend(parser)
    own = {action.dest for action in parser._actions}
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for info in _settings():
        _add(groups[info.group], info)
    if "--" in words:  # where others begin to take names of files
        raise SettingsError([Problem("--", "", "is not accepted here: every value belongs to a flag")])
    found, unknown = parser.parse_known_args([_underscored(word) for word in words])
    typed = vars(found)
    if unknown:
        known = [*SETTINGS, *own]
        problems = [_unknown(word, known) for word in unknown if word.startswith("--")] or [_stray(unknown[0])]
        raise SettingsError(problems + _bad_values({name: typed[name] for name in typed if name not in own}))
    switches = {name: typed.pop(name) for name in list(typed) if name in own}
    return typed, FrontEnd(debug=switches.pop("debug", False), plain=switches.pop("plain", False), switches=switches)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError([_from_argparse(message)])


def _from_argparse(message: str) -> Problem:
    """``argument --samples: expected one argument`` in our words."""
    name, _, rest = message.removeprefix("argument ").partition(": ")
    if not rest:
        return Problem("the command line", "", message)
    name = name.split("/")[-1].lstrip("-")  # the long one of -h/--help
    if name in SETTINGS and rest.startswith("expected"):
        return Problem(name, "", f"needs a value: {SETTINGS[name].accepted()}")
    if rest.startswith("ignored explicit argument"):
        return Problem(name, "", "takes no value")
    return Problem(name, "", rest)


def _unknown(word: str, known: Sequence[str]) -> Problem:
    flag = word.partition("=")[0]
    name = flag.lstrip("-")
    return Problem(flag, "", f"there is no such flag{suggestion(name.removeprefix('no_'), known)}")


def _stray(word: str) -> Problem:
    return Problem("the word", word, "every value belongs to a flag, and every flag begins with --")


def _bad_values(typed: dict[str, Any]) -> list[Problem]:
    """Return the other problems of a command line with an unknown flag."""
    try:
        RunConfig.parse(typed)
    except SettingsError as error:
        return error.problems
    return []


def _settings() -> list[SettingInfo]:
    return [SETTINGS[info.alias or name] for name, info in RunConfig.model_fields.items()]


def _add(group: argparse._ArgumentGroup, info: SettingInfo) -> None:
    text = info.help.replace("%", "%%")
    if info.default is not None and info.kind != "bool":
        text += f" (default {info.default:g})" if isinstance(info.default, float) else f" (default {info.default})"
    if info.kind == "bool":
        if info.default is True:
            text += " (default on)"
        group.add_argument(f"--{info.name}", nargs="?", const=True, metavar="on|off", help=text)
        group.add_argument(
            f"--no_{info.name}", dest=info.name, action="store_const", const=False, help=argparse.SUPPRESS
        )
    else:
        metavar = "|".join(info.choices) if info.choices else (info.unit or info.kind).upper()
        group.add_argument(f"--{info.name}", metavar=metavar, help=text)


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=34, width=_width())


def _width() -> int:
    import shutil

    return max(60, min(120, shutil.get_terminal_size().columns))
