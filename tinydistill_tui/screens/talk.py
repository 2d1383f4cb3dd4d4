"""Talk to the student: one question, and the answers of before, after and teacher side by side, as they come.

Each model answers in a process of its own, one after the other, so that no two of them are ever in memory together. It
is asked as ``tiny-distill-chat`` asks it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from engine.errors import TinyDistillError
from engine.format import format_rate
from engine.machine import hardware
from engine.talk.conversation import ChatSession
from engine.talk.sides import SIDES, Side, sides_of, trusts_code
from engine.talk.speed import keep_speeds
from tinydistill_tui.screens.base import FrameScreen
from tinydistill_tui.view.data_facts import printable

_HEADS = {"after": "after: the student now", "before": "before: the student at its start", "teacher": "the teacher"}


@dataclass
class Spoken(Message):
    """A part of one model's answer, or a change of its state.

    Attributes:
        side: its name.
        text: a further piece of its answer.
        state: how it stands with it, in words; empty when that has not changed.
    """

    side: str
    text: str = ""
    state: str = ""


@dataclass
class AllSpoken(Message):
    """Every model has answered, or the user has stopped it."""

    stopped: bool


class AnswerPane(VerticalScroll):
    """One model's answer.

    Args:
        side: the model's name.
    """

    hint = "The arrows scroll."

    def __init__(self, side: str) -> None:
        super().__init__(id=f"side-{side}", classes="pane")
        self.border_title = _HEADS[side]
        self.answer = ""

    def compose(self) -> Iterable[Widget]:
        """The text."""
        yield Static(markup=False)

    def clear(self) -> None:
        """Another question."""
        self.answer = ""
        self.add("")
        self.border_subtitle = ""

    def add(self, text: str) -> None:
        """A further piece of the answer."""
        self.answer += printable(text)
        self.query_one(Static).update(self.answer)
        self.scroll_end(animate=False)


class TalkScreen(FrameScreen):
    """A prompt line, and three answers.

    Args:
        path: the run's folder.
        first: what an empty line asks: the beginning of a text of the hold-out.
    """

    AUTO_FOCUS = "#prompt"
    GROUP = "Talk"
    HELP = (
        "Type a question, or the beginning of a text, and press Enter. The student answers first, then the student as "
        "it was before the run, then the teacher. Only one of them is in memory at a time. Esc stops "
        "the answers, and goes back when there are none."
    )
    hint = "Enter asks all three, one after the other; Esc stops them, then goes back."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Stop, or back", key_display="Esc", id="talk-back", tooltip="Stop the answers; back"),
        Binding("enter", "ask", "Ask", key_display="↵", id="talk-ask", tooltip="Ask all three"),
    ]

    def __init__(self, path: Path, first: str) -> None:
        super().__init__()
        self.path, self.first = path, first
        self.answering = False
        self._sides: list[Side] = []
        self._sessions: dict[str, ChatSession] = {}
        self._stopped = False

    def compose_content(self) -> Iterable[Widget]:
        """The question, the answers, the prompt line."""
        yield Static(id="asked", markup=False)
        with Container(id="spoken"):
            for side in SIDES:
                yield AnswerPane(side)
        yield Input(placeholder=f"empty: {self.first}", id="prompt", compact=True)

    def on_mount(self) -> None:
        """Nothing is loaded before the first question."""
        super().on_mount()
        self.set_title(Content.assemble((f"{self.path.name}  ", "bold"), "talk to the student"))

    @on(Input.Submitted, "#prompt")
    def action_ask(self) -> None:
        """Ask every model."""
        if self.answering:
            self.say("They are still answering; Esc stops them.", "look")
            return
        field = self.query_one("#prompt", Input)
        words = field.value.strip() or self.first
        field.value = ""
        self.answering, self._stopped = True, False
        self.query_one("#asked", Static).update(Content.assemble(("You  ", "$text-quiet"), (printable(words), "bold")))
        for pane in self.query(AnswerPane):
            pane.clear()
        self.say(self.hint)
        self._ask(words)

    @work(thread=True, exclusive=True, group="talk")
    def _ask(self, words: str) -> None:
        worker = get_current_worker()
        try:
            self._sides = self._sides or sides_of(self.path, hardware.detect(self.path).available_bytes)
            trusted = trusts_code(self.path)
        except TinyDistillError as error:
            gone = not (self.path / "run.json").is_file()
            words = "The run's folder is gone: moved, deleted, unmounted?" if gone else error.paragraph()
            self.post_message(Spoken(SIDES[0], state=words))
            self.post_message(AllSpoken(stopped=False))
            return
        for side in self._sides:
            self.post_message(Spoken(side.name, state="waits" if side.folder is not None else side.problem))
        rates: dict[str, float | None] = {}
        for side in self._sides:
            if not worker.is_cancelled and not self._stopped and side.folder is not None:
                rates[side.name] = self._ask_one(side, side.folder, words, trusted)
        keep_speeds(self.path, rates)
        self.post_message(AllSpoken(self._stopped))

    def _ask_one(self, side: Side, folder: Path, words: str, trusted: bool) -> float | None:
        """One model's answer, and its tokens a second if it gave one; its process is gone afterwards."""
        session = self._sessions.get(side.name) or ChatSession(folder, trust_remote_code=trusted)
        self._sessions[side.name] = session
        turns = len(session.messages)
        self.post_message(Spoken(side.name, state=f"loading, {side.about}…"))
        try:
            for piece in session.ask(words):
                self.post_message(Spoken(side.name, text=piece, state=side.about))
        except TinyDistillError as error:
            del session.messages[turns:]  # what was not answered was not said
            self.post_message(Spoken(side.name, state="stopped" if self._stopped else error.paragraph()))
            return None
        else:
            rate = format_rate(session.tokens_per_second, "tokens")
            self.post_message(Spoken(side.name, state=f"{rate}, {side.about}"))
            return session.tokens_per_second
        finally:
            session.close()

    @on(Spoken)
    def _spoken(self, message: Spoken) -> None:
        pane = self.query_one(f"#side-{message.side}", AnswerPane)
        if message.text:
            pane.add(message.text)
        if len(message.state) > pane.size.width - 4:  # a reason, not a word: it is said whole
            pane.add(message.state)
            pane.border_subtitle = "no answer"
        elif message.state:
            pane.border_subtitle = Content(message.state)

    @on(AllSpoken)
    def _all_spoken(self, message: AllSpoken) -> None:
        self.answering = False
        self.say("Stopped." if message.stopped else self.hint)

    def _stop(self) -> None:
        self._stopped = True
        for session in list(self._sessions.values()):
            session.stop()

    async def action_back(self) -> None:
        """Stop the answers; without any, and while they stop, back to the result."""
        if self.answering and not self._stopped:
            self._stop()
            self.say("Stopping…")
        else:
            await super().action_back()

    def on_unmount(self) -> None:
        """No process outlives the screen."""
        self._stop()
