"""The table of all settings in the README: ``python -m engine.cli.settings_table README.md`` writes it in place."""

from __future__ import annotations

import sys
from pathlib import Path

from engine.settings.config import GROUPS, SETTINGS

BEGIN = "<!-- settings: made by python -m engine.cli.settings_table README.md -->"
END = "<!-- end of settings -->"


def settings_table() -> str:
    """Every setting by group, as Markdown."""
    lines: list[str] = []
    for group, title in GROUPS.items():
        lines += ["", f"**{title}**", "", "| flag | accepted | default | what it does |", "|---|---|---|---|"]
        for info in SETTINGS.values():
            if info.group == group:
                default = "planner" if info.default is None and info.optional else _shown(info.default)
                accepted = info.accepted().replace("|", "\\|")
                lines.append(f"| `--{info.name}` | {accepted} | {default} | {info.help} |")
    return "\n".join([*lines, ""])


def with_table(text: str) -> str:
    """A document with an updated table of settings."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
