"""The frame that every full screen has: title row, rule, content, one line to read, and the keys.

The line above the keys has a fixed place, so that the eye learns it: it says what the focused field is for, or what is
wrong with it. It does not know what a screen shows or does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.css.query import NoMatches
from textual.keys import key_to_character
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.worker import Worker

from tinydistill_tui.navigation import Program
from tinydistill_tui.terminal.key_line import fitting
from tinydistill_tui.view.marks import MARK_STYLES, MARKS
from tinydistill_tui.widgets.key_footer import KeyFooter
from tinydistill_tui.widgets.title_row import Rule, TitleRow

_WHOLE_SIZE = (80, 24)  # nothing is cut or left out from here on
_FUNCTION_KEY = re.compile(r"f\d+")
_CLAUSE = re.compile(r"[.;:,]? \(|[.;:,] ")


class FrameScreen(Screen[None]):
    """A full screen inside the frame.

    Subclasses yield their widgets from :meth:`compose_content`. A widget may have a ``hint`` attribute: the sentence
    that stands above the keys while it has the focus. ``hint`` of the screen is the one for all others.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "Quit", id="leave", tooltip="Leave; a run continues without this window"),
        Binding("escape", "back", "Back", show=False, id="back", tooltip="Back to where you came from"),
        Binding("question_mark,f1", "help", "Help", key_display="?", id="help", tooltip="Help for this screen"),
        # Before what has the focus hears of it: keys that come in one piece, over a slow line, go where they are meant.
        Binding("tab", "app.focus_next", "Next field", show=False, priority=True, tooltip="The next field or pane"),
        Binding("shift+tab", "app.focus_previous", "Field before", show=False, priority=True,
                tooltip="The previous field or pane"),
        Binding("j", "app.simulate_key('down')", show=False),
        Binding("k", "app.simulate_key('up')", show=False),
        Binding("h", "app.simulate_key('left')", show=False),
        Binding("l", "app.simulate_key('right')", show=False),
    ]  # fmt: skip

    GROUP: ClassVar[str] = ""
    """Return the help's name for the keys of this screen."""

    hint: str = ""
    ENTER: ClassVar[str] = ""
    """What Enter does with the chosen row, for the help; Textual's lists call it "Select"."""
    _said: tuple[str, str] | None = None

    @property
    def tiny(self) -> Program:
        """The app, as screens know it."""
        return cast("Program", self.app)

    def compose(self) -> ComposeResult:
        """The frame."""
        yield TitleRow(id="title")
        yield Rule(id="rule")
        with Container(id="content"):
            yield from self.compose_content()
        yield Static(id="verdict", markup=False)
        yield KeyFooter(compact=True, show_command_palette=False)

    def compose_content(self) -> Iterable[Widget]:
        """The widgets between the rule and the line above the keys."""
        return ()

    def on_mount(self) -> None:
        """Begin with the screen's own hint."""
        self.say(self.hint)

    def run_worker(self, work: Any, *args: Any, **options: Any) -> Worker[Any]:
        """Start work, as Textual does; if its screen's widgets are gone when it ends, that is no error."""
        return super().run_worker(self._while_shown(work), *args, **options)

    def _while_shown(self, work: Any) -> Any:
        """Wrap a worker's function: a screen that is closed loses its widgets first, and its workers later."""
        call = getattr(work, "func", work)  # a partial, as @work makes it

        async def wait() -> Any:
            with self._nothing_missed():
                return await work()

        def run() -> Any:
            with self._nothing_missed():
                return work()

        return wait if inspect.iscoroutinefunction(call) else run if callable(call) else work

    @contextlib.contextmanager
    def _nothing_missed(self) -> Iterator[None]:
        try:
            yield
        except NoMatches:
            if self.is_attached and not self._pruning:
                raise

    def set_title(self, left: Content | str, right: str = "") -> None:
        """Set the first row."""
        title = self.query_one(TitleRow)
        title.left = left if isinstance(left, Content) else Content(left)
        title.right = right

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """The keys that work now; those that fit into the line below are shown there."""
        working = self.working_bindings()
        return fitting(working, self.size.width, self.app.get_key_display) if self.size.width else working

    def working_bindings(self) -> dict[str, ActiveBinding]:
        """The keys that work now: where a field takes letters, a letter is no command. In any width, all are shown."""
        field = self.focused
        found = super().active_bindings
        enter = found.get("enter")
        if self.ENTER and enter is not None and enter.binding.description == "Select":
            found["enter"] = enter._replace(binding=dataclasses.replace(enter.binding, tooltip=self.ENTER))
        if not isinstance(field, Input):
            return found
        working = {key: active for key, active in found.items() if not field.check_consume_key(key, _typed_by(key))}
        for key, active in working.items():
            if _FUNCTION_KEY.fullmatch(key):  # it may be shown as its other key, which is a letter
                binding = dataclasses.replace(active.binding, key_display=key.upper())
                working[key] = active._replace(binding=binding)
        return working

    def say(self, sentence: str, mark: str = "") -> None:
        """Put a sentence above the keys, with a mark (a name of ``MARKS``) in front of it."""
        if self._said != (sentence, mark):  # it is said again with each event
            self._said = (sentence, mark)
            self._write_said()

    @on(events.Resize)
    def _write_said(self) -> None:
        """Show the message again in the new width."""
        if self._said is None:
            return
        sentence, mark = self._said
        width, height = self.size
        small = (
            f"{_WHOLE_SIZE[0]}×{_WHOLE_SIZE[1]} shows all. "
            if width < _WHOLE_SIZE[0] or height < _WHOLE_SIZE[1]
            else ""
        )
        words = marked(mark, small + sentence) if mark else Content(small + clause(sentence, width - 2 - len(small)))
        self.query_one("#verdict", Static).update(words, layout=False)

    @on(events.Resize)
    def _fit_keys(self) -> None:
        """Show the keys that fit the new width."""
        self.refresh_bindings()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Say what the focused widget is for."""
        self.say(getattr(event.widget, "hint", "") or self.hint)

    def ready_for(self, key: str) -> bool:
        """Return whether a key means now what it means once the screen has read what it shows; keys wait for that."""
        return True

    async def action_leave(self) -> None:
        """Leave the program."""
        self.app.exit()

    async def action_back(self) -> None:
        """Go back to the screen below, if there is one."""
        if len(self.app.screen_stack) > 1:
            self.app.pop_screen()

    def action_help(self) -> None:
        """Show what this is and every key."""
        self.tiny.show_help()


def _typed_by(key: str) -> str | None:
    """The character of a key; Textual 8.2's own table lacks the slash, which it renames."""
    return "/" if key == "slash" else key_to_character(key)


def clause(sentence: str, room: int) -> str:
    """As much of a sentence as there is room for, up to the end of a clause; all where none is that short."""
    if len(sentence) <= room or not sentence.endswith("."):  # a command, or a name
        return sentence
    ends = [match.start() for match in _CLAUSE.finditer(sentence) if match.start() < room]
    return f"{sentence[: ends[-1]]}." if ends else sentence


def marked(mark: str, words: str) -> Content:
    """Words with their mark in front, in the mark's colour."""
    return Content.styled(f"{MARKS[mark]} {words}", MARK_STYLES[mark])
