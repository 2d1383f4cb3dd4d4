"""Keys in order: the next key is handed out when everything that the one before has set off is done.

Textual posts a key to the widget that has the focus *now*, and looks up bindings of the screen that is shown *now*.
``Widget.focus()``, ``push_screen()`` and workers that open a dialog take effect some turns of the event loop later. In
a burst of keys (a paste, a macro, a stalled SSH line) the letters behind such a key would act as commands of the old
screen. This queue holds them back. It does not know what a screen or a key means.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from textual import events
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.dom import DOMNode
from textual.screen import Screen
from textual.worker import Worker

ASKED = frozenset({"next", "start", "leave", "dialog"})
"""Groups of the workers that a key asks for. All others run in the background, and no key waits for them."""

_MOVES = ("tab", "shift+tab")  # to the next field: Textual sorts by place, and a new row has none yet
_ROUNDS = 3  # a key bubbles up, then its action runs, then the focus moves
_LOOK_SECONDS = 0.01
# The queue counts looks and not seconds: while the event loop is held up, time passes and no screen gets ready.
_MOST_LOOKS = 1000  # 10 s, for a step that reads a model; after that, keys are handed out all the same
_NODE_LOOKS = 100


class KeyQueue:
    """Hands keys to the app one after the other.

    Args:
        app: the app.
        handle: what Textual does with one key.
        leaving: whether the program is being left, so that keys do nothing any more.
        opening: whether there is no screen yet, so that keys wait.
    """

    def __init__(
        self,
        app: App[int],
        handle: Callable[[events.Key], Awaitable[None]],
        leaving: Callable[[], bool],
        opening: Callable[[], bool],
    ) -> None:
        self._app = app
        self._handle = handle
        self._leaving = leaving
        self._opening = opening
        self._keys: deque[events.Key] = deque()
        self._task: asyncio.Task[None] | None = None
        self._holds = 0

    def hold(self) -> None:
        """Keep keys back until :meth:`release` was called as often: what was chosen is on its way to the screen."""
        self._holds += 1

    def release(self) -> None:
        """Hand out keys again."""
        self._holds -= 1

    def put(self, event: events.Key) -> None:
        """Take a key; it is handled later, and after all keys that were put before it."""
        self._keys.extend(apart(event))
        if self._task is None:
            self._task = asyncio.create_task(self._hand_out(), name="keys in order")

    async def _hand_out(self) -> None:
        try:
            while self._opening() and not self._leaving():
                await asyncio.sleep(_LOOK_SECONDS)
            while self._keys and not self._leaving():
                event = self._keys.popleft()
                await self._until_ready_for(event.key)
                before = self._app.screen
                known = set(self._app.workers)
                if event.key in _MOVES:
                    await _laid_out(before)
                await self._handle(event)
                await self._heard()
                await self._until(lambda: self._app.screen is not before or not self._asked(before, known))  # noqa: B023
                if self._app.screen is not before:
                    await self._until(lambda: _has_its_focus(self._app.screen))
                    await self._heard()
        finally:
            self._task = None
            if self._leaving():
                self._keys.clear()

    async def _until_ready_for(self, key: str) -> None:
        """Wait until the screen is ready for a key. A box that opened meanwhile gets the focus before this returns."""
        if not self._is_ready_for(key):
            await self._until(lambda: self._is_ready_for(key))
            await self._heard()

    def _is_ready_for(self, key: str) -> bool:
        ready_for = getattr(self._app.screen, "ready_for", None)
        return not self._holds and (ready_for is None or bool(ready_for(key)))

    def _asked(self, screen: Screen[Any], known: set[Worker[Any]]) -> bool:
        return any(
            worker.group in ASKED and worker.node is screen and worker not in known and not worker.is_finished
            for worker in self._app.workers
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(_MOST_LOOKS):
            if self._leaving() or condition():
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _heard(self) -> None:
        """Wait until each widget from the focus up to the app has handled what it was sent so far."""
        for _ in range(_ROUNDS):
            for node in list((self._app.focused or self._app.screen).ancestors_with_self):
                if self._leaving():
                    return
                await _handled(node)


async def _handled(node: DOMNode) -> None:
    done = asyncio.Event()
    if node.is_running and node.call_later(done.set):
        await _soon(done)


async def _laid_out(screen: Screen[Any]) -> None:
    """Wait until rows that a key has shown or hidden have their places."""
    done = asyncio.Event()
    if screen.is_running and screen.call_after_refresh(done.set):
        await _soon(done)


async def _soon(done: asyncio.Event) -> None:
    for _ in range(_NODE_LOOKS):  # a node may wait for something long by itself
        if done.is_set():
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _LOOK_SECONDS)


def _has_its_focus(screen: Screen[Any]) -> bool:
    wanted = screen.app.AUTO_FOCUS if screen.AUTO_FOCUS is None else screen.AUTO_FOCUS
    return screen.is_mounted and (not wanted or screen.focused is not None or not screen.focus_chain)


def apart(event: events.Key) -> tuple[events.Key, ...]:
    """Return a key as the user typed it.

    Esc and a letter that came in one read are two keys; Textual makes Alt and the letter of them. An Enter from before
    the screen was there is an Enter.
    """
    if event.key == "ctrl+j":  # Enter, typed while the terminal was still the shell's: it comes as a newline
        return (events.Key("enter", "\r"),)
    modifier, _, key = event.key.rpartition("+")
    if modifier in ("alt", "alt+shift") and len(key) == 1 and event.character:
        letter = event.character
        return events.Key("escape", "\x1b"), events.Key(letter, letter)
    return (event,)


def keep_escape() -> None:
    """Let Textual's parser report an Esc that a character follows within one read.

    Textual 8.2 takes the two for Alt and the character, and forgets the Alt where the character has a name of its own
    (``/`` is ``slash``): the Esc would be lost. No binding of this program uses Alt.
    """
    original = XTermParser._sequence_to_key_events
    if getattr(original, "keeps_escape", False):
        return

    def both(self: XTermParser, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        if alt:
            yield events.Key("escape", "\x1b")
        yield from original(self, sequence)

    both.keeps_escape = True  # type: ignore[attr-defined]
    XTermParser._sequence_to_key_events = both  # type: ignore[method-assign]
