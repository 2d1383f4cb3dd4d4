"""The command palette's runs and settings: "attach notes-0412", "set student_batch"."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import Any, cast

from textual import on
from textual.await_complete import AwaitComplete
from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.markup import escape
from textual.widgets import Input
from textual.worker import Worker, WorkerState

from engine.settings.config import SETTINGS
from tinydistill_tui.navigation import EditSetting, OpenRun, Program
from tinydistill_tui.screens.step import StepScreen
from tinydistill_tui.work import runs

FIND_SECONDS = 1.0


class Palette(CommandPalette):
    """Textual's palette, in which Enter means what was typed.

    Textual 8.2.8 leaves the finds of an earlier text in the list while it searches for a later one: an Enter at that
    time would take one of those, or nothing. Here it waits for the search.
    """

    _enter_waits = False
    _is_chosen = False  # Textual's list tells the palette some turns of the event loop later

    def ready_for(self, key: str) -> bool:
        """Keys behind an Enter wait until the palette is gone: they are for what the command opens."""
        return key == "escape" or not (self._enter_waits or self._is_chosen)

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Close it. A command that was chosen runs behind this, and keys wait until it has."""
        if self._selected_command is not None:
            cast("Program", self.app).hold_keys()
        return super().dismiss(result)

    def _searching(self) -> bool:
        return any(worker.group == self._GATHER_COMMANDS_GROUP and not worker.is_finished for worker in self.workers)

    @on(Input.Submitted)
    def _wait_for_the_search(self, event: Input.Submitted) -> None:
        if self._searching():
            self._enter_waits = True
            event.stop()
            event.prevent_default()
        else:
            self._is_chosen = self._list_visible and self._hit_count > 0

    @on(Input.Changed)
    def _typed_on(self) -> None:
        self._enter_waits = False

    @on(Worker.StateChanged)
    def _search_ended(self, event: Worker.StateChanged) -> None:
        if self._enter_waits and event.state is WorkerState.SUCCESS and not self._searching():
            self._enter_waits, self._is_chosen = False, self._hit_count > 0
            if self._is_chosen:
                self._select_or_command()


class Search:
    """A search for typed words in a text: as they are, each by itself, or letter by letter in their order.

    Textual 8.2.8 tries every way in which a query's letters lie in a text. In a sentence these are millions, and
    nothing else is drawn or typed meanwhile.

    Args:
        query: the typed words.
    """

    def __init__(self, query: str) -> None:
        self._query = " ".join(query.lower().split())
        self._words = self._query.split()

    def in_words(self, text: str) -> float:
        """A score up to 1 for a text that has the query or each of its words; else 0."""
        lowered = text.lower()
        if not self._words or not all(word in lowered for word in self._words):
            return 0.0
        share = min(1.0, len(self._query) / max(1, len(text)))
        return (0.9 if self._query in lowered else 0.7) + 0.1 * share

    def in_name(self, name: str) -> float:
        """The same, and a low score for a name that has the query's letters in their order."""
        return self.in_words(name) or (0.3 if self._letters(name) else 0.0)

    def highlighted(self, name: str) -> Content:
        """A name with what was found in it underlined."""
        lowered, content = name.lower(), Content(name)
        if self.in_words(name):
            starts = [(lowered.index(word), len(word)) for word in self._words]
        else:
            starts = [(place, 1) for place in self._letters(name)]
        for start, length in starts:
            content = content.stylize("bold underline", start, start + length)
        return content

    def _letters(self, name: str) -> list[int]:
        lowered, places, start = name.lower(), [], 0
        for letter in "".join(self._words):
            place = lowered.find(letter, start)
            if place < 0:
                return []
            places.append(place)
            start = place + 1
        return places


class RunCommands(Provider):
    """Attach to any run."""

    async def startup(self) -> None:
        """Start the search for runs, without waiting for it.

        Textual 8.2.8 cancels a provider's startup when another letter is typed, and then shows no hits at all.
        """
        self._finding = asyncio.create_task(asyncio.to_thread(runs.find))

    async def shutdown(self) -> None:
        """Cancel the search."""
        self._finding.cancel()

    async def _paths(self) -> list[Path]:
        """The runs that there are; none where it takes long to find them, for the others' finds wait for ours."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(self._finding), FIND_SECONDS)
        return []

    async def discover(self) -> Hits:
        """The newest runs, before anything is typed."""
        for path in (await self._paths())[:5]:
            command = f"attach {path.name}"
            # A name may look like markup.
            yield DiscoveryHit(Content(command), partial(self._open, path), command, help=escape(str(path)))

    async def search(self, query: str) -> Hits:
        """Runs whose name matches."""
        search = Search(query)
        for path in await self._paths():
            command = f"attach {path.name}"
            if (score := search.in_name(command)) > 0:
                yield Hit(score, search.highlighted(command), partial(self._open, path), command, escape(str(path)))

    async def _open(self, path: Path) -> None:
        await cast("Program", self.app).navigate(OpenRun(path))


class SettingCommands(Provider):
    """Change any setting of the run that is being asked for; only within the wizard."""

    async def search(self, query: str) -> Hits:
        """Settings whose name or help matches."""
        if not isinstance(self.screen, StepScreen):
            return
        search = Search(query)
        for name, info in SETTINGS.items():
            command = f"set {name}"
            score = max(search.in_name(command), 0.5 * search.in_words(info.help))
            if score > 0 and info.group != "command":
                yield Hit(score, search.highlighted(command), partial(self._edit, name), command, escape(info.help))

    async def _edit(self, name: str) -> None:
        await cast("Program", self.app).navigate(EditSetting(name))
