"""Profiles: settings that the user saved under a name, one TOML file each.

Only what the user set is saved; the planner decides the rest on each machine. A profile's name can never leave the
profiles' folder.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.disk import places
from engine.disk.files import write_atomic
from engine.errors import Problem, RequestError, SettingsError, TinyDistillError
from engine.settings.config import RunConfig
from engine.settings.describe import suggestion

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def folder() -> Path:
    """Where profiles are kept; it need not exist yet."""
    return places.config() / "profiles"


def names() -> list[str]:
    """The names of all saved profiles, sorted."""
    return sorted(path.stem for path in folder().glob("*.toml") if _NAME.fullmatch(path.stem))


def path_of(name: str) -> Path:
    """The file of a profile.

    Raises:
        SettingsError: the name could be no file name, or would leave the folder.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            [Problem("profile", name, "expected a name of letters, digits, dots, dashes and underscores")]
        )
    return folder() / f"{name}.toml"


def load(name: str) -> dict[str, Any]:
    """The settings of a profile, checked.

    Raises:
        SettingsError: no such profile, or a setting in it that cannot be.
        RequestError: the file is no TOML.
    """
    path = path_of(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = names()
        there = f"there are: {', '.join(known)}" if known else "none is saved yet"
        raise SettingsError([Problem("profile", name, f"there is no such profile; {there}")], "") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"The profile {path} cannot be read ({error}).",
            "",
            "Fix the file, or delete it and save the profile again.",
        ) from error
    return RunConfig.parse(values).asked()


def save(name: str, values: Mapping[str, Any]) -> Path:
    """Save settings under a name, replacing what was there.

    Raises:
        SettingsError: the name or a setting cannot be.
        FolderError: the user has no home folder.
    """
    path = path_of(name)
    places.check_somewhere(path, "profiles", "the settings themselves")
    asked = RunConfig.parse(values).asked()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{key} = {_toml(value)}\n" for key, value in asked.items()))
    return path


def rename(old: str, new: str) -> None:
    """Give a profile another name.

    Raises:
        SettingsError: there is none of the old name, or one of the new.
    """
    source, target = path_of(old), path_of(new)
    if target.exists():
        raise SettingsError([Problem("profile", new, "there is a profile of this name already")], "")
    if not source.exists():
        raise SettingsError(
            [Problem("profile", old, f"there is no such profile{suggestion(old, names(), prefix='')}")], ""
        )
    source.rename(target)
    moments = _moments()
    if old in moments:
        _keep({**{name: moment for name, moment in moments.items() if name != old}, new: moments[old]})


def delete(name: str) -> None:
    """Delete a profile; nothing happens when it is not there."""
    path_of(name).unlink(missing_ok=True)
    moments = _moments()
    if moments.pop(name, None) is not None:
        _keep(moments)


def used_at(name: str) -> float | None:
    """Return when the profile was last used, in Unix seconds; None if never or unknown."""
    return _moments().get(name)


def used(name: str, now: float) -> None:
    """Record a use of the profile; errors are ignored, as nothing depends on it."""
    _keep({**_moments(), name: now})


def _moments_path() -> Path:
    return places.state() / "profiles-used.json"


def _moments() -> dict[str, float]:
    try:
        moments = json.loads(_moments_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(moments, dict):
        return {}
    return {str(name): float(moment) for name, moment in moments.items() if isinstance(moment, (int, float))}


def _keep(moments: Mapping[str, float]) -> None:
    with contextlib.suppress(OSError, TinyDistillError):
        _moments_path().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_moments_path(), json.dumps(moments))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for the pairs of \u that JSON writes for an emoji, and for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
