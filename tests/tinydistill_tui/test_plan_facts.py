"""The plan's rows come from the one definition of the settings: one that is added has its place."""

import textwrap

import pytest

from engine.planner import plan
from engine.settings.config import SETTINGS, RunConfig
from tests.tinydistill_tui.wizard import MACHINE
from tinydistill_tui.view.plan_facts import FIRST_SETTINGS, rows, shown, typed, whole_sentences


@pytest.fixture(scope="module")
def planned():
    return plan(RunConfig(demo=True), hardware=MACHINE, strict=False)


def test_every_setting_that_a_run_has_is_behind_f6_and_can_be_typed_again(planned):
    found = {row.field: row for row in rows(planned, everything=True)}
    assert set(found) == {name for name, info in SETTINGS.items() if info.group != "command"} | {"until"}
    for name in found:
        value = getattr(planned.settings, SETTINGS[name].field)
        assert found[name].value == shown(name, value)
        if value is not None:
            RunConfig.parse({name: typed(name, value), "use_recommended": True})


def test_first_settings_are_settings(planned):
    assert set(FIRST_SETTINGS) <= set(SETTINGS)
    few, all_of_them = (rows(planned, everything=everything) for everything in (False, True))
    assert {row.field for row in few} < {row.field for row in all_of_them}


@pytest.mark.parametrize("width", [78, 58, 118])
@pytest.mark.parametrize("length", [20, 100, 160])
def test_a_sentence_of_the_plan_is_whole_or_not_there(width, length):
    sentences = (("word " * 15).strip() + ".", ("work " * (length // 5)).strip() + ".", "The folder takes up 2 MiB.")
    said = whole_sentences(sentences, width)
    assert said.startswith(" ".join(sentences[:2]))
    assert said.endswith(sentences[2]) is (len(textwrap.wrap(" ".join(sentences), width)) <= 3)
