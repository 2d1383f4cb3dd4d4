"""The command palette's runs: "attach notes-0412"."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tinydistill_tui import runs

if TYPE_CHECKING:
    from tinydistill_tui.app import TinyDistillApp


class RunCommands(Provider):
    """Attach to any run that is found."""

    async def startup(self) -> None:
        """Look which runs there are, while the palette opens."""
        self._paths: list[Path] = await asyncio.to_thread(runs.find)

    async def discover(self) -> Hits:
        """The newest runs, before anything is typed."""
        for path in self._paths[:5]:
            yield DiscoveryHit(f"attach {path.name}", partial(self._open, path), help=str(path))

    async def search(self, query: str) -> Hits:
        """Runs whose name matches."""
        matcher = self.matcher(query)
        for path in self._paths:
            command = f"attach {path.name}"
            if (score := matcher.match(command)) > 0:
                yield Hit(score, matcher.highlight(command), partial(self._open, path), help=str(path))

    async def _open(self, path: Path) -> None:
        await cast("TinyDistillApp", self.app).open_run(path)
