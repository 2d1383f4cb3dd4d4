"""TinyDistillApp: three modes (the wizard, one run, all runs), and what is the same in each of them.

It holds where to look and how to draw; a run's state is in its folder. It draws its first frame before the engine's
settings, the planner and the screens are imported: ``routes``, which imports them all, is imported behind that frame.
Entry point: :func:`run_app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console
from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.constants import DEFAULT_THEME
from textual.filter import LineFilter
from textual.screen import Screen
from textual.widget import Widget

from engine.disk import places
from engine.machine import safe_child
from tinydistill_tui.terminal import appearance, clipboard, ending, opening, sharing, window
from tinydistill_tui.terminal.key_queue import KeyQueue, keep_escape

if TYPE_CHECKING:
    from engine.errors import TinyDistillError
    from engine.machine.hardware import Hardware
    from tinydistill_tui.navigation import Request

COMMAND_LINE = "from the command line"
_TWICE_SECONDS = 1.0
_SCREENS = "tinydistill_tui.routes"


def _run_commands() -> type[Provider]:
    from tinydistill_tui.palette import RunCommands

    return RunCommands


def _setting_commands() -> type[Provider]:
    from tinydistill_tui.palette import SettingCommands

    return SettingCommands


class TinyDistillApp(App[int]):
    """The program on the screen.

    Args:
        config_values: settings that were given on the command line or by a profile; the wizard begins with them.
        attach: the run to watch; the wizard when None.
        source: where ``config_values`` came from, in words.
        options: ``ascii``, ``no_mouse``, ``no_animation``.
        clock: Unix seconds; tests bring their own.

    Attributes:
        run_path: the run that the run mode shows.
        leaving: the program is being left; keys do nothing any more.
        opening: the screens are still being imported; keys wait for them.
        machine: what this machine has, as the first screen found it: all steps plan for the same free memory. It is
            looked at again on the first screen, by F5 on the plan, and when the run is made.
    """

    TITLE = "TinyDistill"
    HORIZONTAL_BREAKPOINTS = window.WIDTHS
    VERTICAL_BREAKPOINTS = window.HEIGHTS
    CSS_PATH: ClassVar[Any] = ["tinydistill.tcss", "wizard.tcss"]
    COMMANDS: ClassVar[Any] = {*App.COMMANDS, _run_commands, _setting_commands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+c", "interrupt", "Leave", show=False, priority=True, id="interrupt", tooltip="Leave; twice at once"
        ),
        Binding(
            "ctrl+z", "suspend_process", "Suspend", show=False, priority=True, id="suspend", tooltip="To the shell; fg"
        ),
        Binding("colon", "command_palette", "Commands", show=False, id="palette", tooltip="Find anything by its name"),
        Binding("f12", "take_screenshot", "Screenshot", show=False, id="screenshot", tooltip="Save the screen as SVG"),
    ]

    def __init__(
        self,
        config_values: Mapping[str, Any] | None = None,
        *,
        attach: Path | None = None,
        source: str = COMMAND_LINE,
        options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # Without colours, the terminal's own would leave no difference between a row and the chosen one: greys do.
        super().__init__(ansi_color=False if "NO_COLOR" in os.environ else None)
        self.config_values = dict(config_values or {})
        self.source = source
        self.options = dict(options or {})
        self.clock = clock
        self.run_path = attach
        self.leaving, self.opening = False, True
        self.machine: Hardware | None = None
        self._interrupted = -_TWICE_SECONDS
        self._is_copied = False
        self._keys = KeyQueue(self, super().on_event, lambda: self.leaving, lambda: self.opening)
        self.register_theme(appearance.DARK)
        self.register_theme(appearance.LIGHT)
        if "TEXTUAL_THEME" not in os.environ or DEFAULT_THEME not in self.available_themes:
            self.theme = appearance.DARK.name
        self.watch_theme(self.theme)  # Textual does not report the first one
        if self.options.get("no_animation") or _slow_terminal():
            self.animation_level = "none"
        self._own_filters: list[LineFilter] = [appearance.ContrastFilter()]
        if self.options.get("ascii"):
            self._own_filters.append(appearance.AsciiFilter())

    def compose(self) -> Iterable[Widget]:
        """The first frame."""
        return opening.first_rows(self.run_path)

    def on_mount(self) -> None:
        """Take the mode that was asked for, and end in order when asked to by the system."""
        ending.end_in_order(self)
        if not self.is_headless:
            self.set_interval(window.LOOK_SECONDS, lambda: window.follow(self))
        if _SCREENS in sys.modules:
            self._open()
        else:
            self.call_after_refresh(self.run_worker, self._import_screens, group="opening")

    async def _import_screens(self) -> None:
        """Import what the first frame did without."""
        await asyncio.to_thread(import_module, _SCREENS)
        self._open()

    def _open(self) -> None:
        from tinydistill_tui import routes

        routes.add_modes(self)
        self.opening = False
        if not gc.isenabled():
            gc.freeze()  # what was imported is no garbage
            gc.enable()
        self.switch_mode("wizard" if self.run_path is None else "run")

    def on_resize(self, event: events.Resize) -> None:
        """Redraw a window whose size has not changed; Textual does nothing then."""
        window.redraw_if_same(self, event)

    async def on_event(self, event: events.Event) -> None:
        """Keys in order; all else as Textual has it. Ctrl+C waits for nothing."""
        if isinstance(event, events.Key) and not event.is_forwarded and event.key != "ctrl+c":
            self._keys.put(event)
            return
        if isinstance(event, events.Paste) and not event.is_forwarded:
            self._tell_of_lines(event.text)
        await super().on_event(event)

    def _tell_of_lines(self, pasted: str) -> None:
        """Say that a field has one line: Textual takes the first one of a text that is pasted."""
        from textual.widgets import Input  # the first frame does without

        if isinstance(self.focused, Input) and any(line.strip() for line in pasted.splitlines()[1:]):
            sentence = "Only the first line of the pasted text was taken: this field holds one line."
            self.notify(sentence, severity="warning", markup=False)

    def exit(self, result: int | None = None, return_code: int = 0, message: Any = None) -> None:
        """Leave the program; keys that were typed ahead are dropped."""
        self.leaving = True
        super().exit(result, return_code, message)

    def get_line_filters(self) -> list[LineFilter]:
        """Textual's own filters, and ours behind them."""
        return [*super().get_line_filters(), *self._own_filters]

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own colour beside Textual's: ``$text-quiet``."""
        return {**super().get_theme_variable_defaults(), "text-quiet": appearance.quiet(self.current_theme)}

    def watch_theme(self, theme: str) -> None:
        """Without colours, an ansi theme would be black on black (Textual 8.2.8): take a readable one."""
        if self.no_color and self.current_theme.name.startswith("ansi"):
            self.theme = appearance.FALLBACK_THEME

    async def navigate(self, request: Request) -> None:
        """Carry out a screen's request.

        Raises:
            TinyDistillError: a run cannot be started; what is shown stays.
        """
        from tinydistill_tui import routes

        await routes.follow(self, request)

    def action_command_palette(self) -> None:
        """Open the command palette."""
        from tinydistill_tui.palette import Palette

        if self.use_command_palette and not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    def hold_keys(self) -> None:
        """Keep keys back until what is called later has run: a palette has its command called behind this call."""
        self._keys.hold()
        self.call_later(self.call_later, self._keys.release)

    def show_help(self) -> None:
        """Help for what has the focus, on the screen that is shown."""
        from tinydistill_tui import routes

        routes.show_help(self)

    def tell(self, error: TinyDistillError) -> None:
        """Show an error in a corner, if it has no place of its own on the screen."""
        self.notify(error.paragraph(), severity="error", timeout=12, markup=False)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy a text, in tmux by tmux itself too."""
        super().copy_to_clipboard(text)
        self._is_copied = not self.is_headless and clipboard.give_to_tmux(text)

    def copy(self, text: str, what: str, more: str = ".") -> None:
        """Copy a text and say so; a terminal does not answer whether it has taken it.

        Args:
            text: for the clipboard.
            what: it is: "the command".
            more: the end of the sentence.
        """
        self.copy_to_clipboard(text)
        said = f"Copied {what}" if self._is_copied else f"Sent {what} to the terminal's clipboard"
        self.notify(f"{said}{more}", markup=False)

    def show_in_pager(self, path: Path) -> None:
        """Let the user read a file in ``$PAGER``; the screen comes back afterwards."""
        import subprocess

        if not path.is_file():
            self.notify(f"It is not there: {path}", severity="warning", markup=False)
            return
        problem = sharing.lend(self, lambda: subprocess.run([*_pager(), str(path)], check=False))
        if problem:
            sentence = f"It could not be opened here ({problem}); read it elsewhere: {path}"
            self.notify(sentence, severity="warning", markup=False)

    def run_in_the_terminal(self, words: Sequence[str], folder: Path | None = None) -> None:
        """Run a program where the screen was; the screen comes back when the user has read its output.

        Args:
            words: the program and its arguments; our own programs are run whatever the shell's path says.
            folder: where it runs; where this program was started unless given.
        """
        import subprocess

        def run() -> None:
            sys.stdout.write(f"$ {shlex.join(words)}\n")
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                subprocess.run(safe_child.own_program(words), check=False, cwd=folder)
            with contextlib.suppress(EOFError):
                input("\nEnter comes back to TinyDistill. ")

        problem = sharing.lend(self, run)
        if problem:
            sentence = f"It could not be run here: {problem}. y copies the command."
            self.notify(sentence, severity="warning", markup=False)

    async def action_interrupt(self) -> None:
        """Ctrl+C is ``q``; twice within a second leaves at once, and a run continues."""
        now = time.monotonic()
        twice, self._interrupted = now - self._interrupted < _TWICE_SECONDS, now
        if twice or self.opening:
            self.exit(0)
        elif hasattr(self.screen, "action_leave"):
            self.screen.call_later(self.screen.action_leave)

    def action_take_screenshot(self) -> None:
        """Save the screen as SVG, beside the run that is shown."""
        folder = _where_to_write(self.run_path) / "screenshots"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.clock())) + ".svg"
            self.notify(f"Saved {self.save_screenshot(name, str(folder))}", markup=False)
        except OSError as error:
            self.notify(f"The screenshot could not be saved: {error}.", severity="error", markup=False)

    def action_show_mode(self, mode: str) -> None:
        """Go to the wizard or to the list of runs."""
        self.switch_mode(mode)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The few commands that are there on every screen."""
        yield SystemCommand("New run", "The wizard: models, data, plan", lambda: self.action_show_mode("wizard"))
        yield SystemCommand("All runs", "All runs, with their state", lambda: self.action_show_mode("runs"))
        yield SystemCommand("Theme", "Other colours", self.action_change_theme)
        yield SystemCommand("Keys and help", "Help for this screen, and every key", self.show_help)
        yield SystemCommand("Screenshot", "Save the screen as SVG", self.action_take_screenshot)
        if hasattr(screen, "action_leave"):
            yield SystemCommand("Quit", "Leave; a run continues without this window", screen.action_leave)


def run_app(
    config_values: Mapping[str, Any],
    *,
    attach: Path | None = None,
    source: str = COMMAND_LINE,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Show the program until the user leaves it; returns the exit code.

    A defect of the screens never shows a traceback: it is written to ``ui-crash.log``, and the run continues.
    """
    options = options or {}
    window.believe_the_terminal()
    window.take_only_the_newest_size()
    keep_escape()
    app = TinyDistillApp(
        config_values, attach=attach.expanduser().absolute() if attach else None, source=source, options=options
    )
    traceback = io.StringIO()
    app.error_console = Console(file=traceback, width=120, no_color=True)
    result = app.run(mouse=not options.get("no_mouse"))
    if app.return_code:
        return _crashed(app.run_path, traceback.getvalue(), bool(options.get("debug")))
    return result or 0


def _crashed(run_path: Path | None, traceback: str, debug: bool) -> int:
    folder = _where_to_write(run_path)
    log = folder / "ui-crash.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback, encoding="utf-8")
        where = f"The traceback is in {log}."
    except OSError as error:
        where = f"The traceback could not be written ({error})."
    if debug:
        sys.stderr.write(traceback + "\n")
    goes_on = "The run continues" if run_path else "Runs continue"
    again = f"tinydistill-tui --attach {shlex.quote(str(run_path))}" if run_path else "tinydistill-tui"
    sys.stderr.write(f"The screen met a defect and closed. {where} {goes_on}; open it again: {again}\n")
    return 4


def _where_to_write(run_path: Path | None) -> Path:
    """The shown run's folder, but not one that was deleted: that is not made again."""
    return run_path if run_path is not None and run_path.is_dir() else places.state()


def _pager() -> list[str]:
    with contextlib.suppress(ValueError):  # an open quote
        return shlex.split(os.environ.get("PAGER", "")) or ["less"]
    return ["less"]


def _slow_terminal() -> bool:
    """Return whether what moves would come late: over SSH, or through a terminal multiplexer."""
    terminal = os.environ.get("TERM", "")
    return bool(os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY")) or terminal.startswith(
        ("screen", "tmux")
    )
