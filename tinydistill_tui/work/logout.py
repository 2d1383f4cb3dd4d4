"""Whether this system ends programs when their user logs out, and how a run survives that.

systemd can be set to end all processes of a session at its end (``KillUserProcesses``, which is seldom on),
and ends everything below a user's own manager when the user has no session left (unless ``Linger`` is on); programs of
a desktop are often started below it. Source: loginctl(1), logind.conf(5), systemd-run(1).
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

_SECONDS = 1.0
_SESSION = re.compile(r"/session-[^/]+\.scope")
_MANAGER = re.compile(r"/user@\d+\.service")


def warning(pid: int | None) -> str:
    """Return a warning about logging out; empty if the run survives a logout, or if the system does not say.

    Args:
        pid: the run's supervisor; this process where it is not known.
    """
    try:
        group = Path(f"/proc/{pid or 'self'}/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    if not (_SESSION.search(group) or _MANAGER.search(group)):
        return ""
    lingers = "yes" in _answer("loginctl", "show-user", str(os.getuid()), "--property=Linger")
    manager = "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "KillUserProcesses"
    kills = "true" in _answer("busctl", "get-property", "org.freedesktop.login1", *manager)
    return advice(group, kills=kills, lingers=lingers)


def advice(group: str, *, kills: bool, lingers: bool) -> str:
    """The sentences for a process in this control group.

    Args:
        group: the text of its /proc/PID/cgroup.
        kills: whether processes of a session end with it.
        lingers: whether the user's manager outlives the last session.
    """
    first = "" if lingers else "once loginctl enable-linger, then "
    if _SESSION.search(group) and kills:
        return (
            "This system ends your programs when you log out. To keep a run alive, "
            f"{first}start it with systemd-run --user --scope tinydistill-tui."
        )
    if _MANAGER.search(group) and not lingers:
        return "This system ends the run when your last session ends. To keep it alive: loginctl enable-linger."
    return ""


def _answer(*words: str) -> str:
    """Return a program's output; empty if it is missing, fails or takes long."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=_SECONDS, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
