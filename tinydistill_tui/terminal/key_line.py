"""The keys that the line below a screen has room for: whole ones, the most important first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rich.cells import cell_len
from textual.binding import ActiveBinding, Binding

_HELP = "help"  # has room always: it lists the keys that have none


def fitting(
    bindings: Mapping[str, ActiveBinding], width: int, name_of: Callable[[Binding], str]
) -> dict[str, ActiveBinding]:
    """Return the bindings, of which only those are shown that a compact footer shows whole.

    Args:
        bindings: the active ones, the most important first.
        width: of the footer, in cells.
        name_of: a key as the footer writes it.
    """
    shown: dict[str, int] = {}
    for active in bindings.values():
        binding = active.binding
        if binding.show:  # of several keys for one action, the footer shows the first
            shown.setdefault(binding.action, cell_len(name_of(binding)) + 1 + cell_len(binding.description) + 1)
    room = width + 1 - shown.get(_HELP, 0)  # there is no space behind the last one
    kept = {_HELP}
    for action, cells in shown.items():
        if action == _HELP:
            continue
        room -= cells
        if room < 0:
            break
        kept.add(action)
    return {
        key: active if not active.binding.show or active.binding.action in kept else _hidden(active)
        for key, active in bindings.items()
    }


def _hidden(active: ActiveBinding) -> ActiveBinding:
    return active._replace(binding=dataclasses.replace(active.binding, show=False))
