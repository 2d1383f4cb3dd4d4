"""The last row of a screen: the keys that work now.

Textual's own footer takes a widget for each key, and makes all of them anew with each change of the focus; that was a
quarter of the processor time that the screens took. This is one widget, which is drawn again where a key comes or goes.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import RenderResult
from textual.reactive import reactive
from textual.screen import Screen
from textual.widget import Widget

_PARTS = "key-line--"
_SCROLLED_CELLS = 4


class ShownKey(NamedTuple):
    """A key on the line."""

    key: str
    name: str
    does: str
    works: bool
    tooltip: str

    @property
    def cells(self) -> int:
        """Its width, in cells of the terminal."""
        return Text(self.words).cell_len

    @property
    def words(self) -> str:
        """The key and its description, as written."""
        return f"{self.name} {self.does}" if self.does else self.name


class KeyLine(Widget):
    """One line of keys and what each does. A click on one presses it, and its tooltip says more.

    Attributes:
        keys: those that are shown, from left to right.
        left_out: cells on the left that the wheel moved out of sight, where the line is longer than the window is wide.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {_PARTS + part for part in ("key", "does", "pointed")}
    DEFAULT_CSS = """
    KeyLine {
        dock: bottom;
        height: 1;
        text-wrap: nowrap;
        color: $footer-foreground;
        background: $footer-background;
        .key-line--key {
            color: $footer-key-foreground;
            background: $footer-key-background;
            text-style: bold;
        }
        .key-line--does {
            color: $footer-description-foreground;
            background: $footer-description-background;
        }
        .key-line--pointed {
            background: $block-hover-background;
        }
    }
    """

    keys: reactive[tuple[ShownKey, ...]] = reactive((), layout=False)
    left_out: reactive[int] = reactive(0, layout=False)
    _pointed: reactive[ShownKey | None] = reactive(None, layout=False)

    def on_mount(self) -> None:
        """Hear of every change of what the keys do."""
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def on_unmount(self) -> None:
        """Hear of it no more."""
        self.screen.bindings_updated_signal.unsubscribe(self)

    def _bindings_changed(self, screen: Screen[object]) -> None:
        if screen.app.app_focus and self.is_attached and screen is self.screen:
            self.keys = self._shown()

    def _shown(self) -> tuple[ShownKey, ...]:
        """The first key of each action that is to be shown."""
        found: dict[str, ShownKey] = {}
        for _, binding, works, tooltip in self.screen.active_bindings.values():
            if binding.show and binding.action not in found:
                name = self.app.get_key_display(binding)
                found[binding.action] = ShownKey(binding.key, name, binding.description, works, tooltip)
        return tuple(found.values())

    def render(self) -> RenderResult:
        """All keys, without the cells that are moved out of sight."""
        line = Text(no_wrap=True, end="")
        key_style, does_style = (self.get_component_rich_style(_PARTS + part) for part in ("key", "does"))
        pointed_style = Style(bgcolor=self.get_component_rich_style(_PARTS + "pointed").bgcolor)
        for shown in self.keys:
            words = Text.assemble((shown.name, key_style), (f" {shown.does}" if shown.does else "", does_style))
            if not shown.works:
                words.stylize(Style(dim=True))
            if shown is self._pointed:
                words.stylize(pointed_style)
            line.append_text(words)
            line.append(" ")
        return line[self.left_out :] if self.left_out else line

    def key_at(self, cell: int) -> ShownKey | None:
        """The key that is shown at a cell of the line, counted from the window's left edge."""
        begin = -self.left_out
        for shown in self.keys:
            if begin <= cell < begin + shown.cells:
                return shown
            begin += shown.cells + 1
        return None

    @property
    def line_cells(self) -> int:
        """Width of all keys."""
        return sum(shown.cells + 1 for shown in self.keys) - 1

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Press the key."""
        shown = self.key_at(event.x)
        if shown is None:
            return
        if shown.works:
            self.app.simulate_key(shown.key)
        else:
            self.app.bell()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Show which key a click would press."""
        self._point_at(self.key_at(event.x))

    def on_leave(self) -> None:
        """No key is pointed at."""
        self._point_at(None)

    def _point_at(self, shown: ShownKey | None) -> None:
        if shown is not self._pointed:
            self._pointed = shown
            self.tooltip = (shown.tooltip or None) if shown else None

    def on_mouse_scroll_down(self) -> None:
        """Move on to keys for which the window is too narrow."""
        self._scroll(_SCROLLED_CELLS)

    def on_mouse_scroll_up(self) -> None:
        """Move back."""
        self._scroll(-_SCROLLED_CELLS)

    def on_resize(self) -> None:
        """Leave out no more than has to be."""
        self._scroll(0)

    def watch_keys(self) -> None:
        """Begin at the left with other keys."""
        self.left_out, self._pointed = 0, None

    def _scroll(self, cells: int) -> None:
        self.left_out = max(0, min(self.left_out + cells, self.line_cells - self.size.width))
