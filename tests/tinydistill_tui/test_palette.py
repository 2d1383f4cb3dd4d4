"""The command palette's search."""

from __future__ import annotations

from typing import Any

import pytest
from textual.fuzzy import FuzzySearch

from engine.settings.config import SETTINGS
from tests.tinydistill_tui.fixtures import make_run
from tests.tinydistill_tui.screen import text_of, until
from tests.tinydistill_tui.wizard import wizard
from tinydistill_tui.palette import Search

pytestmark = pytest.mark.usefixtures("same_machine", "runs_folder")


def ranked(query: str) -> list[str]:
    search = Search(query)
    scores = {name: max(search.in_name(f"set {name}"), 0.5 * search.in_words(SETTINGS[name].help)) for name in SETTINGS}
    return sorted((name for name in scores if scores[name]), key=lambda name: -scores[name])


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("set seed", "seed"),
        ("SEED", "seed"),
        ("batch student", "student_batch"),
        ("hldt", "holdout"),  # letter by letter
        ("softmax temperature", "temperature"),  # in its help
        ("adamw's", "weight_decay"),
    ],
)
def test_a_setting_is_found_by_its_name_its_letters_or_its_help(query: str, first: str) -> None:
    assert ranked(query)[0] == first


def test_nothing_is_found_by_words_that_are_nowhere() -> None:
    assert ranked("qqq") == []
    assert ranked("") == []
    assert ranked("   ") == []


def test_found_words_are_underlined_and_the_name_stays() -> None:
    for query in ("student batch", "stbt", "set"):
        shown = Search(query).highlighted("set student_batch")
        assert shown.plain == "set student_batch"
        assert shown.spans


async def test_no_letter_waits_for_a_search_that_tries_every_way(
    monkeypatch: pytest.MonkeyPatch, runs_folder: Any
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(FuzzySearch, "_match", lambda self, query, text: tried.append(text) or [(0.0, ())])
    make_run(runs_folder, name="a" * 60)
    async with wizard() as (app, pilot):
        await pilot.press("colon", *"set sequence of the seeds")
        await until(pilot, lambda: app.screen.query_one("Input").value == "set sequence of the seeds", "it is typed")  # type: ignore[attr-defined]
        assert max(map(len, tried), default=0) < 30  # Textual's own commands


@pytest.mark.parametrize("name", ["[red]x", "a[b", "b[c] ["])
async def test_a_run_whose_name_looks_like_markup_is_found(name: str, runs_folder: Any) -> None:
    make_run(runs_folder, name=name)
    async with wizard() as (app, pilot):
        await pilot.press("colon")
        await until(pilot, lambda: f"attach {name}" in text_of(app), "it is offered")
        await pilot.press(*"attach")
        await until(pilot, lambda: f"attach {name}" in text_of(app), "it is found")
