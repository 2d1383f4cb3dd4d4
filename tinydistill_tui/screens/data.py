"""Step 3: the text, with a quick look at how much there is and how it begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static
from textual.worker import get_current_worker

from engine.data.row_preview import RowRequest, ShownRow
from engine.data.sources import PYTHON_DOCS
from engine.data.survey import Survey, survey
from engine.errors import DataError, TinyDistillError
from engine.planner import plan
from engine.planner.summary import cautions
from engine.settings.config import RunConfig
from tinydistill_tui.dialogs.confirm import Answer, ConfirmScreen
from tinydistill_tui.dialogs.picker import PickerScreen
from tinydistill_tui.screens.base import marked
from tinydistill_tui.screens.step import SEE_ABOVE, StepScreen
from tinydistill_tui.view import data_facts
from tinydistill_tui.view.marks import MARKS
from tinydistill_tui.widgets.field import ChoiceLine, TextField
from tinydistill_tui.widgets.once import after
from tinydistill_tui.widgets.preview import Preview
from tinydistill_tui.work import first_rows
from tinydistill_tui.work.draft import Draft

LOOK_AFTER_SECONDS = 0.3
ROWS_AFTER_SECONDS = 0.5  # a process with a tokenizer costs seconds of a core: not for each letter that is typed
_ON_OFF = [("on", "on"), ("off", "off")]
_DECIDES_THE_TEXT = ("data", "text_field")


@dataclass
class Surveyed(Message):
    """Result of a survey, so far or at its end.

    Attributes:
        asked: the data and the field that were looked at.
        found: None while there are only words.
        words: how far it is, or what is wrong.
        wrong: whether the words say what is wrong.
    """

    asked: tuple[str, str, str]
    found: Survey | None = None
    words: str = ""
    wrong: bool = False


class _How(TypedDict):
    text_field: str | None
    split: str


@dataclass
class Counted(Message):
    """The planner's sentences about the amount of text, and the settings of the first rows."""

    lines: list[str]
    rows: RowRequest | None


@dataclass
class RowsMade(Message):
    """The first rows; or none, and why."""

    asked: RowRequest
    rows: list[ShownRow]
    problem: str = ""


class DataScreen(StepScreen):
    """The text."""

    NUMBER = 3
    NEXT = "plan"
    GROUP = "Data"
    AUTO_FOCUS = "#field-data"
    HELP = (
        "The text that both models read: a .txt, .md, .jsonl, .json, .csv or .parquet file, a folder of them, or the "
        "id of a Hugging Face dataset. Some documents are held out: the student is evaluated on them, never trained."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "browse", "Browse", key_display="F2", id="data-browse", tooltip="Look for a file or a folder"),
        Binding("f5", "look_again", "Look again", key_display="F5", id="data-again", tooltip="Read the files again"),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft)
        self.found: Survey | None = None
        self._wrong = ""
        self._asked: tuple[str, str, str] | None = None
        self._timer: Timer | None = None
        self._rows_asked: RowRequest | None = None

    def compose_content(self) -> Iterable[Widget]:
        """The fields, what was found, and a preview."""
        draft = self.draft
        with Horizontal(classes="row"):
            yield Static("Text", classes="label")
            yield TextField(
                "data",
                draft.get("data"),
                placeholder="empty: Python's own documentation",
                hint="A .txt, .md, .jsonl, .json, .csv or .parquet file, or a folder of them.",
            )
        yield Static("looking…", id="data-facts", classes="facts", markup=False)
        with Horizontal(classes="row"):
            yield Static("Field", classes="label")
            yield TextField(
                "text_field", draft.get("text_field"), placeholder="detected; only for .jsonl, .csv, .parquet"
            )
        with Horizontal(classes="row"):
            yield Static("Length", classes="label")
            yield TextField(
                "sequence_length", draft.get("sequence_length"), placeholder="tokens in a row", classes="half"
            )
            yield Static("Samples", classes="label")
            yield TextField("samples", draft.get("samples"), placeholder="all rows", classes="half")
        with Horizontal(classes="row"):
            yield Static("Hold-out", classes="label")
            yield TextField(
                "holdout",
                draft.get("holdout"),
                placeholder="0.05",
                classes="half",
                hint="Share of the documents that is held out: the student is evaluated on them, never trained.",
            )
            yield Static("Packing", classes="label")
            yield ChoiceLine(
                "packing",
                _ON_OFF,
                draft.get("packing") or "on",
                classes="half",
                hint="on: several documents in a row; off: one document in a row, padded to its length.",
            )
        yield Static(id="amounts", classes="facts", markup=False)
        yield Preview()

    def on_mount(self) -> None:
        """Look at what is there already."""
        self._look_soon()

    def on_screen_resume(self) -> None:
        """Survey the data again after a return to this screen; earlier results were discarded."""
        self._look_soon()

    def changed(self, setting: str) -> None:
        """Look again when it is another text; count again in any case."""
        if setting in _DECIDES_THE_TEXT:
            self.draft.set("allow_losses", "")  # it was said of other text
            self._wrong = ""
            self._asked = None
        self._look_soon()

    def _look_soon(self, seconds: float | None = None) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = after(self, LOOK_AFTER_SECONDS if seconds is None else seconds, self._begin)

    def _begin(self) -> None:
        if self._asked != self._asking():
            self._survey(self._asking())
        self._count()

    def _asking(self) -> tuple[str, str, str]:
        """The text, its field, and the split that a profile or the settings may name: all that a survey depends on."""
        return self.draft.get("data") or PYTHON_DOCS, self.draft.get("text_field"), self.draft.get("data_split")

    @work(thread=True, exclusive=True, group="survey", exit_on_error=False)
    def _survey(self, asked: tuple[str, str, str]) -> None:
        worker = get_current_worker()

        def tell(message: Surveyed) -> None:
            if not worker.is_cancelled:
                self.post_message(message)

        data = asked[0]
        try:
            if data == PYTHON_DOCS:  # what is known of it at once, the preview in seconds
                tell(Surveyed(asked, survey(data, previews=0), words="Reading its first documents."))
            found = survey(
                data,
                **_how(asked),
                cancelled=lambda: worker.is_cancelled,
                on_progress=lambda done, files: tell(Surveyed(asked, words=f"looking… {done:,} of {files:,} files")),
            )
        except DataError as error:
            tell(Surveyed(asked, words=error.paragraph(), wrong=True))
        else:
            tell(Surveyed(asked, found))

    @on(Surveyed)
    def _surveyed(self, message: Surveyed) -> None:
        if not self.is_there or message.asked != self._asking():
            return
        facts = self.query_one("#data-facts", Static)
        if message.found is None and not message.wrong:
            facts.update(message.words)
            return
        self._asked, self.found = message.asked, message.found
        self._wrong = message.words if message.wrong else ""
        if message.found is None:
            facts.update(marked("wrong", message.words))
        else:
            lines = [data_facts.what_there_is(message.found), data_facts.what_is_special(message.found)]
            left_out, is_much = data_facts.what_is_left_out(message.found)
            said = "\n".join(line for line in lines if line)
            if is_much:
                facts.update(Content.assemble(said, "\n", marked("look", left_out)))
            else:
                facts.update(f"{said}\n{left_out}".rstrip())
        self._rows_asked = None
        self.query_one(Preview).show_documents(
            message.found.preview if message.found is not None else (), "" if message.wrong else message.words
        )
        self._count()
        name = self._bad_setting()
        for field in self.query(TextField):
            if field.setting in _DECIDES_THE_TEXT:
                self.set_problem(field, SEE_ABOVE if self._wrong and field.setting == name else "")

    def _bad_setting(self) -> str:
        return "text_field" if self.draft.get("text_field") and "field" in self._wrong else "data"

    @work(thread=True, exclusive=True, group="count", exit_on_error=False)
    def _count(self) -> None:
        worker = get_current_worker()
        try:
            planned = plan(self.draft.good_config(), hardware=self.tiny.machine, strict=False)
        except TinyDistillError as error:
            lines, rows = [error.what if not isinstance(error, DataError) else ""], None
        else:
            rows = first_rows.request_for(planned.settings)
            reasons = {choice.field: choice.reason for choice in planned.choices}
            settings = planned.settings
            lines = [f"Rows of {planned.settings.sequence_length:,} tokens: {reasons['sequence_length']}"]
            if settings.samples is None:
                lines.append(f"Samples: {reasons['samples']}")
            elif planned.text_rows is not None and settings.samples > planned.text_rows:
                there_are = f"the text has (about {planned.text_rows:,} rows)"
                lines.append(f"! Samples {settings.samples:,} is more than {there_are}: all are used.")
            lines.append(f"Records on disk: {reasons['record_size']}")
            lines += [f"{MARKS['look']} {sentence}" for sentence in cautions(planned)]
        if not worker.is_cancelled:
            self.post_message(Counted(lines, rows))

    @on(Counted)
    def _counted(self, message: Counted) -> None:
        if self.is_there:
            self.query_one("#amounts", Static).update("\n".join(message.lines))
            self._ask_for_rows(message.rows)

    def _ask_for_rows(self, request: RowRequest | None) -> None:
        """Have the first rows made, unless they are there or being made; not of a data set that is on the hub."""
        is_looked_at = self.found is not None and self._asked == self._asking() and bool(self.found.preview)
        if request is None or not is_looked_at or request == self._rows_asked:
            return
        self._rows_asked = request
        self.query_one(Preview).wait_for_rows()
        self._make_rows(request)

    @work(exclusive=True, group="rows", exit_on_error=False)
    async def _make_rows(self, request: RowRequest) -> None:
        worker = get_current_worker()
        await asyncio.sleep(ROWS_AFTER_SECONDS)
        rows, problem = await asyncio.to_thread(first_rows.make, request, lambda: worker.is_cancelled)
        self.post_message(RowsMade(request, rows, problem))

    @on(RowsMade)
    def _rows_made(self, message: RowsMade) -> None:
        if self.is_there and message.asked == self._rows_asked:
            note = f"{MARKS['look']} The rows cannot be shown: {message.problem}" if message.problem else ""
            self.query_one(Preview).show_rows(message.rows, note)

    async def wrong_field(self) -> tuple[str, str] | None:
        """There must be text that can be read."""
        if self._wrong and self._asked == self._asking():
            return self._bad_setting(), SEE_ABOVE
        found = self.found
        if (asked := self._asking()) != self._asked:
            try:
                found = await asyncio.to_thread(survey, asked[0], **_how(asked), previews=0)
            except DataError as error:
                self.post_message(Surveyed(asked, words=error.paragraph(), wrong=True))
                return "data", SEE_ABOVE
        return await self._mostly_left_out(found)

    async def _mostly_left_out(self, found: Survey | None) -> tuple[str, str] | None:
        """Ask whether to continue without most of the text; returns the field and its error if the answer is no."""
        lost = found.left_out if found is not None else None
        if lost is None or not lost.is_most or self.draft.get("allow_losses") == "on":
            return None
        answer = await self.app.push_screen_wait(
            ConfirmScreen(
                "More than half of the text would not be used",
                f"{lost.sentences()}\n\nThe student would learn from the rest alone.",
                [Answer("stay", "Choose other text", "s"), Answer("go", "Continue without it", "g", costs=True)],
            )
        )
        if answer != "go":
            return "data", "More than half of the text would not be used. Fix it, or choose other text."
        self.draft.set("allow_losses", "on")
        return None

    def action_look_again(self) -> None:
        """Read the files again."""
        self._asked = None
        self._look_soon(0.01)

    @work(group="dialog")
    async def action_browse(self) -> None:
        """Look for a file or a folder."""
        field = self.query_one("#field-data", TextField)
        found = await self.app.push_screen_wait(PickerScreen("The text", field.value, wanted="data"))
        if found is not None:
            field.value = found
        field.focus()


def _how(asked: tuple[str, str, str]) -> _How:
    """How a survey reads the text: what is not typed is as in a run."""
    _, field, split = asked
    return {"text_field": field or None, "split": split or RunConfig().data_split}
