"""Help for the focused widget, and all keys of the screen, made from its bindings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

MOVE, EDIT, EVERYWHERE = "Move", "Edit the text", "Everywhere"
_LAST = (MOVE, EDIT, EVERYWHERE)
_MOVES = ("focus", "scroll", "page", "cursor_", "back", "match", "sample", "first", "last")
_MOVING_KEYS = frozenset({"up", "down", "tab", "shift+tab", "escape", "home", "end", "pageup", "pagedown"})
_OF_A_FIELD = frozenset(binding.action for binding in Binding.make_bindings(Input.BINDINGS) if binding.key != "enter")
_UNUSED = ("super+", "ctrl+page")  # of Textual's own widgets: another key does it, or nothing is that wide
_NAMES = {
    "question_mark": "?", "slash": "/", "colon": ":", "space": "Space", "escape": "Esc", "enter": "Enter",
    "left": "←", "right": "→", "up": "↑", "down": "↓", "tab": "Tab", "shift+tab": "Shift+Tab", "delete": "Del",
    "home": "Home", "end": "End", "pageup": "PgUp", "pagedown": "PgDn",
    "upper_n": "N", "upper_s": "S", "upper_d": "D", "upper_r": "R", "upper_w": "W",
}  # fmt: skip


class HelpScreen(ModalScreen[None]):
    """Help for what had the focus.

    Args:
        about: sentences on the focused thing and the screen; empty ones are left out.
        bindings: the active bindings of the screen below.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,enter", "close", "Close", key_display="Esc", id="close-help"),
    ]

    def __init__(self, about: list[str], bindings: Mapping[str, ActiveBinding]) -> None:
        super().__init__()
        self._sentences = [sentence for sentence in about if sentence]
        self._keys = bindings

    def compose(self) -> ComposeResult:
        """The box."""
        with VerticalScroll(id="help", classes="dialog") as box:
            box.border_title = "Help"
            box.border_subtitle = "Esc closes"
            for sentence in self._sentences:
                yield Static(sentence, markup=False, classes="help-about")
            yield Static(key_table(self._keys))

    def on_mount(self) -> None:
        """The arrows scroll."""
        self.query_one("#help").focus()

    def action_close(self) -> None:
        """Back to the screen."""
        self.dismiss(None)


def key_table(bindings: Mapping[str, ActiveBinding]) -> Content:
    """One line for each thing that can be done: its keys and what it does, in groups: here, moving, everywhere."""
    rows: dict[str, dict[tuple[str, str], list[str]]] = {}
    for active in bindings.values():
        binding = active.binding
        if binding.description and active.enabled and not binding.system and not binding.key.startswith(_UNUSED):
            keys = rows.setdefault(_group(active), {})
            keys.setdefault((binding.action, binding.tooltip or binding.description), []).append(_key_name(binding.key))
    wide = max((len(" ".join(keys)) for group in rows.values() for keys in group.values()), default=0)
    lines: list[Content] = []
    for group in sorted(rows, key=lambda name: _LAST.index(name) if name in _LAST else -1):
        lines += [Content(""), Content.styled(group, "bold")]
        lines += [
            Content.assemble("  ", (" ".join(keys).ljust(wide), "bold $text-accent"), "  ", words)
            for (_, words), keys in rows[group].items()
        ]
    return Content("\n").join(lines[1:])


def _group(active: ActiveBinding) -> str:
    """Where a key stands: with its screen's, with those that move or edit a text, or with the whole program's."""
    name = active.binding.action.removeprefix("screen.").removeprefix("app.").partition("(")[0]
    if isinstance(active.node, App) or name in ("help", "leave", "command_palette"):
        return EVERYWHERE
    if isinstance(active.node, Input) and active.binding.action in _OF_A_FIELD:
        return EDIT
    if name.startswith(_MOVES) or active.binding.key in _MOVING_KEYS:
        return MOVE
    node = active.node if isinstance(active.node, Screen) else active.node.screen
    return str(getattr(node, "GROUP", "") or "Here")


def _key_name(key: str) -> str:
    is_function_key = key[:1] == "f" and key[1:].isdigit()
    return _NAMES.get(key, key.upper() if is_function_key else key)
