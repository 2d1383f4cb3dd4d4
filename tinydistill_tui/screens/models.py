"""Step 2: which model teaches and which one learns, with what is known of them before anything is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.hub import cached_models, is_hub_id
from engine.planner.models import FROM_TEACHER
from tinydistill_tui.dialogs.picker import PickerScreen
from tinydistill_tui.screens.base import marked
from tinydistill_tui.screens.step import SEE_ABOVE, StepScreen
from tinydistill_tui.view.model_facts import ModelFacts, look
from tinydistill_tui.view.plan_facts import home_as_tilde
from tinydistill_tui.view.suggestions import Suggestion, suggested, table
from tinydistill_tui.widgets.excerpt import Excerpt
from tinydistill_tui.widgets.field import ChoiceLine, TextField
from tinydistill_tui.work import runs
from tinydistill_tui.work.download import download
from tinydistill_tui.work.draft import Draft

LOOK_AFTER_SECONDS = 0.3
_ENTER_TAKES = "Enter uses the model as the teacher."
_STUDENTS = [(FROM_TEACHER, "Cut from the teacher's layers"), ("own", "A model of its own")]


class ModelsScreen(StepScreen):
    """Teacher and student."""

    NUMBER = 2
    NEXT = "data"
    GROUP = "Models"
    ENTER = "Take the chosen model"
    AUTO_FOCUS = "#field-teacher"
    HELP = (
        "The teacher scores the text once; its answers are kept on disk. The student then learns from them. A "
        "student that is cut from the teacher keeps some of its layers and its tokenizer. Any other student must have "
        "the teacher's tokenizer, because the records hold token ids."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f3", "download", "Download", key_display="F3", id="models-download", tooltip="Download missing models"
        ),
        Binding("f2", "browse", "Browse", key_display="F2", id="models-browse", tooltip="Look for a model's folder"),
        Binding(
            "f5",
            "look_again",
            "Check again",
            key_display="F5",
            id="models-again",
            tooltip="Read the models' files again",
        ),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft)
        self.facts: ModelFacts | None = None
        self._looking = False
        self._own = draft.get("student") not in ("", FROM_TEACHER)
        self._own_text = draft.get("student") if self._own else ""

    def compose_content(self) -> Iterable[Widget]:
        """Two models and what is known of them."""
        cached = cached_models()
        recent = runs.recent_models()
        known = [*recent, *(name for name in cached if name not in recent)]
        suggester = SuggestFromList(known, case_sensitive=False)
        with Horizontal(classes="row"):
            yield Static("Teacher", classes="label")
            yield TextField(
                "teacher",
                self.draft.get("teacher"),
                placeholder="empty: the planner picks a local one that fits",
                hint="Teacher: a model's folder, a GGUF file, or a Hugging Face id.",
                suggester=suggester,
            )
        yield Static("reading…", id="teacher-facts", classes="facts", markup=False)
        with Horizontal(classes="row"):
            yield Static("Student", classes="label")
            yield ChoiceLine("student", _STUDENTS, "own" if self._own else FROM_TEACHER, hint="Space changes it.")
        with Horizontal(classes="row", id="row-layers"):
            yield Static("Layers", classes="label")
            yield TextField(
                "student_layers",
                self.draft.get("student_layers"),
                placeholder="half of the teacher's",
                hint="Layers of the teacher that the student keeps; empty: the planner's choice.",
            )
        with Horizontal(classes="row", id="row-student"):
            yield Static("Model", classes="label")
            yield TextField(
                "student",
                self._own_text,
                placeholder="a folder, or a Hugging Face id",
                hint="Student: a smaller model with the teacher's tokenizer.",
                suggester=suggester,
            )
        yield Static(id="student-facts", classes="facts", markup=False)
        yield Excerpt(id="checks")
        self._suggested = self._suggestions(cached)
        title = "Suggestions for this machine, and local models" if self._suggested else "Local models"
        yield Static(title, id="suggestions-title", classes="heading")
        options = [
            Option(f"{home_as_tilde(name)}{'   used recently' if name in recent else ''}", id=f"model-{number}")
            for number, name in enumerate(known)
        ]
        pairs = [Option(pair.row(self._here), id=f"pair-{number}") for number, pair in enumerate(self._suggested)]
        whole = sum(not pair.missing_bytes(self._here) for pair in self._suggested)
        self._teachers = [*known, str(DEMO_TEACHER)]
        options.append(Option("The small teacher that comes with the program", id=f"model-{len(known)}"))
        options = [*pairs[:whole], *options, *pairs[whole:]]  # what is here first
        suggestions = OptionList(*options, id="suggestions", compact=True, markup=False)
        suggestions.hint = _ENTER_TAKES  # type: ignore[attr-defined]
        yield suggestions

    def on_mount(self) -> None:
        """Look at what is there already."""
        self._show_student()
        self._look()

    def on_screen_resume(self) -> None:
        """Coming back: the draft may be another one."""
        self._look()

    def changed(self, setting: str) -> None:
        """The student's kind decides which field is below it."""
        self._look()

    @on(ChoiceLine.Changed)
    def _kind(self, event: ChoiceLine.Changed) -> None:
        event.stop()
        event.prevent_default()  # the step's own handler would write "own" into the draft
        self._own = event.value == "own"
        self.draft.set("student", self.query_one("#field-student", TextField).value if self._own else FROM_TEACHER)
        if not self._own:
            self.draft.set("student_layers", self.query_one("#field-student_layers", TextField).value)
        self._show_student()
        self._look()

    def _show_student(self) -> None:
        self.query_one("#row-student").display = self._own
        self.query_one("#row-layers").display = not self._own

    def meant(self, field: TextField) -> str:
        """A field that is not shown says nothing."""
        if field.setting == "student" and not self._own:
            return self.draft.get("student")
        return field.value

    @work(exclusive=True, group="look")
    async def _look(self) -> None:
        self._looking = True
        await asyncio.sleep(LOOK_AFTER_SECONDS)
        self._show(await self._look_now())
        self._looking = False

    async def _look_now(self) -> ModelFacts:
        if self._own and not self.draft.get("student"):
            return ModelFacts(bad="student", sentence="Which model is the student? A folder, or a Hugging Face id.")
        config = self.draft.good_config()
        return await asyncio.to_thread(look, config, self.tiny.machine)

    def _show(self, facts: ModelFacts) -> None:
        if not self.is_there:
            return
        self.facts = facts
        unread = "" if facts.bad != "teacher" else "No model can be read."
        self.query_one("#teacher-facts", Static).update("\n".join(facts.teacher) or unread)
        self.query_one("#student-facts", Static).update("\n".join(facts.student))
        if facts.bad:
            lines = [marked("wrong", facts.sentence)]
            if self.missing_model:
                lines.append(Content(f"F3 downloads {self.missing_model} from Hugging Face."))
        else:
            lines = [marked(mark, words) for mark, words in facts.checks]
        self.query_one("#checks", Excerpt).say(Content("\n").join(lines))
        self.refresh_bindings()
        for field in self.query(TextField):
            bad = facts.bad == field.setting and (field.value or field.setting == "student")
            self.set_problem(field, SEE_ABOVE if bad else self._problem_of(field))

    async def wrong_field(self) -> tuple[str, str] | None:
        """The models themselves must be there and go together."""
        self.say("reading the models…")
        facts = await self._look_now()
        self._show(facts)
        if not facts.bad:
            self.say_of(self.focused)
            return None
        return facts.bad, SEE_ABOVE

    def _suggestions(self, cached: list[str]) -> list[Suggestion]:
        """The pairs for the device and the budget that were chosen on the first screen."""
        machine = self.tiny.machine
        self._here = frozenset(cached)
        if machine is None:
            return []
        gpus = [gpu.free_bytes for gpu in machine.gpus if self.draft.get("device") in ("", gpu.device)]
        asked = self.draft.good_config()
        budget = asked.memory_budget if gpus else asked.ram_budget
        memory = min(max(gpus, default=machine.available_bytes), budget or machine.ram_bytes + sum(gpus))
        return suggested(table(), memory_bytes=memory, disk_bytes=machine.disk_free_bytes, here=self._here)

    @on(OptionList.OptionHighlighted, "#suggestions")
    def _say_what_for(self, event: OptionList.OptionHighlighted) -> None:
        kind, _, number = str(event.option.id).partition("-")
        suggestions = event.option_list
        about = self._suggested[int(number)].about(self._here) if kind == "pair" else _ENTER_TAKES
        suggestions.hint = about  # type: ignore[attr-defined]
        if suggestions.has_focus:
            self.say(about)

    @on(OptionList.OptionSelected, "#suggestions")
    def _take(self, event: OptionList.OptionSelected) -> None:
        kind, _, number = str(event.option.id).partition("-")
        field = self.query_one("#field-teacher", TextField)
        if kind == "pair":
            pair = self._suggested[int(number)]
            field.value = pair.teacher
            self.query_one("#field-student", TextField).value = pair.student
            self.query_one("#choice-student", ChoiceLine).take("own")
        else:
            field.value = self._teachers[int(number)]
        field.focus()

    def action_look_again(self) -> None:
        """Read the files again."""
        self._look()

    @property
    def missing_model(self) -> str:
        """The id of a model that is not on this machine and may be on the hub; empty when there is none."""
        if self.facts is None or self.facts.bad not in ("teacher", "student"):
            return ""
        name = self.draft.get(self.facts.bad)
        return name if is_hub_id(name) and name not in cached_models() and not Path(name).exists() else ""

    def ready_for(self, key: str) -> bool:
        """Return whether F3 has something to download is known once the models were looked for."""
        return key != "f3" or not self._looking

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what is missing can be downloaded."""
        return bool(self.missing_model) if action == "download" else True

    def action_download(self) -> None:
        """Download the model that is missing."""
        self.say(f"Downloading {self.missing_model}… Esc ends it.", "live")
        self._download(self.missing_model)

    @work(thread=True, exclusive=True, group="download")
    def _download(self, name: str) -> None:
        worker = get_current_worker()
        problem = download(name, lambda: worker.is_cancelled)
        if not worker.is_cancelled:
            self.app.call_from_thread(self._downloaded, name, problem)

    def _downloaded(self, name: str, problem: str) -> None:
        if not self.is_there:
            return
        if problem:
            self.query_one("#checks", Excerpt).say(marked("wrong", problem))
            self.say(f"{name} could not be downloaded.", "wrong")
        else:
            self.say(f"{name} is here.", "good")
            self._look()

    @work(group="dialog")
    async def action_browse(self) -> None:
        """Look for a folder; it goes into the field that has the focus."""
        name = "student" if self._own and self.focused is self.query_one("#field-student") else "teacher"
        field = self.query_one(f"#field-{name}", TextField)
        found = await self.app.push_screen_wait(PickerScreen(f"The {name}'s folder", field.value, wanted="model"))
        if found is not None:
            field.value = found
        field.focus()
