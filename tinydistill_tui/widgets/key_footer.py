"""The line of keys below a screen, drawn again only when the keys are others."""

from __future__ import annotations

from textual.widgets import Footer


class KeyFooter(Footer):
    """Textual's footer rebuilds its widgets at each change of focus; this one only if it shows other keys.

    Most moves of the focus leave the keys as they were. Each new widget costs a style sheet and a layout.
    """

    _drawn: object = None

    async def recompose(self) -> None:
        """Rebuild the keys' widgets if they show something else than the present ones."""
        if not self.is_attached or self._pruning:  # it is on its way out, and has no screen
            return
        shown = self._shown()
        if shown == self._drawn and self.children:
            return
        self._drawn = shown
        await super().recompose()

    def _shown(self) -> object:
        return [
            (active.binding.key, self.app.get_key_display(active.binding), active.binding.description,
             active.binding.action, active.enabled, active.tooltip)
            for active in self.screen.active_bindings.values()
            if active.binding.show
        ]  # fmt: skip
