"""Pairs that the wizard suggests: the table, the choice for a machine, and the list on the models' screen."""

import tomllib
from datetime import date

import pytest
from textual.widgets import OptionList

from tests.benchmarks.suggestion_needs import PAIRS, parameters
from tests.tinydistill_tui.fixtures import GIB
from tests.tinydistill_tui.screen import lines_of, text_of, until
from tests.tinydistill_tui.wizard import until_models, wizard
from tinydistill_tui.screens import models
from tinydistill_tui.view.suggestions import MOST_SHOWN, TABLE, suggested, table


def test_table_has_date_and_source_and_the_parameters_that_the_shapes_give():
    found = tomllib.loads(TABLE.read_text())
    assert isinstance(found["date"], date)
    assert "https://huggingface.co/" in found["source"]
    assert [(pair.teacher, pair.student) for pair in table()] == PAIRS
    for pair in table():
        assert (pair.teacher_parameters, pair.student_parameters) == (
            parameters(pair.teacher),
            parameters(pair.student),
        )
    sizes = [sum(pair.file_bytes.values()) for pair in table()]
    assert sizes == sorted(sizes)


def names(memory, disk=1000 * GIB, here=()):
    found = suggested(table(), memory_bytes=memory, disk_bytes=disk, here=here)
    return [pair.teacher.rpartition("/")[2] for pair in found]


def test_pairs_fit_the_machine_and_those_in_comfort_come_first():
    assert names(8 * GIB) == ["SmolLM2-1.7B-Instruct", "Qwen2.5-1.5B-Instruct", "SmolLM2-360M-Instruct"]
    assert names(64 * GIB)[0] == "Qwen2.5-7B-Instruct"
    assert names(GIB)[0] == "SmolLM2-360M-Instruct"  # none in comfort: the smallest first
    assert names(GIB // 4) == []
    assert names(64 * GIB, disk=3 * GIB) == ["SmolLM2-360M-Instruct"]
    assert all(len(names(memory * GIB)) <= MOST_SHOWN for memory in range(64))


def test_a_pair_that_is_here_comes_first_and_needs_no_disk():
    largest = table()[-1]
    here = (largest.teacher, largest.student)
    assert names(8 * GIB, disk=0, here=here) == ["Qwen2.5-7B-Instruct"]
    assert names(8 * GIB, here=here)[0] == "Qwen2.5-7B-Instruct"
    assert "here" in largest.row(here)
    assert "F3" not in largest.about(here)
    half = table()[0]
    assert half.missing_bytes((half.student,)) == 2 * half.teacher_parameters


@pytest.mark.usefixtures("same_machine")
@pytest.mark.parametrize(
    ("budget", "count", "title"),
    [("", 3, "Suggestions for this machine"), ("560MB", 1, "Suggestions"), ("500MB", 0, "Local models")],
)
async def test_pairs_fit_the_budget_that_was_typed(budget, count, title):
    async with wizard({"demo": True, **({"ram_budget": budget} if budget else {})}) as (app, pilot):
        await pilot.press("enter")
        screen = await until_models(app, pilot)
        rows = screen.query_one("#suggestions", OptionList)
        assert sum(str(option.id).startswith("pair") for option in rows.options) == count
        assert title in text_of(app)


@pytest.mark.usefixtures("same_machine")
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_enter_takes_both_models_of_a_pair_and_f3_downloads_what_is_missing(monkeypatch, size):
    monkeypatch.setattr(models, "cached_models", list)
    asked = []
    monkeypatch.setattr(models, "download", lambda name, cancelled: asked.append(name) or "There is no network.")
    async with wizard({"demo": True}, size) as (app, pilot):
        await pilot.press("enter")
        screen = await until_models(app, pilot)
        rows = screen.query_one("#suggestions", OptionList)
        rows.focus()
        rows.highlighted = [str(option.id) for option in rows.options].index("pair-0")
        await until(pilot, lambda: "Good for" in lines_of(app)[-2], "what it is good for")
        assert "SmolLM2-1.7B-Instruct → SmolLM2-360M-Instruct" in text_of(app)
        assert "needs 576 MiB" in text_of(app)
        await pilot.press("enter")
        await until(pilot, lambda: "F3 downloads HuggingFaceTB/SmolLM2-1.7B-Instruct" in text_of(app), "it is missing")
        assert screen.draft.get("teacher") == "HuggingFaceTB/SmolLM2-1.7B-Instruct"
        assert screen.draft.get("student") == "HuggingFaceTB/SmolLM2-360M-Instruct"
        assert "(•) A model of its own" in text_of(app)
        await pilot.press("f3")
        await until(pilot, lambda: asked == ["HuggingFaceTB/SmolLM2-1.7B-Instruct"], "it is downloaded")
