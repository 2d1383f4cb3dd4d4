from dataclasses import replace

import pytest

from engine.errors import DoesNotFit
from engine.planner import Choice, PhasePrediction, Plan
from engine.settings.config import RunConfig
from tinydistill_tui.view.tries import Try, stepped, tried, tries_words, values_around

MIB = 2**20


def plan_of(student_bytes: int, *, teacher_bytes: int = 100 * MIB, seconds: float = 60.0, fits: bool = True) -> Plan:
    predicted = {
        "teacher": PhasePrediction(teacher_bytes, 60.0, 1.0, {}, teacher_bytes),
        "student": PhasePrediction(student_bytes, seconds, 1.0, {}, student_bytes),
    }
    return Plan(RunConfig(), (), predicted, 0, 1, None if fits else DoesNotFit("no"))


@pytest.mark.parametrize(
    ("name", "value", "step", "text"),
    [
        ("student_batch", 16, 1, "32"),
        ("student_batch", 16, -1, "8"),
        ("student_batch", 1, -1, None),
        ("student_batch", 4096, 1, None),
        ("gradient_checkpointing", False, 1, "on"),
        ("gradient_checkpointing", False, -1, "on"),
        ("optimizer", "adamw", 1, "adamw-8bit"),
        ("learning_rate", 0.001, 1, "0.002"),
        ("holdout", 0.5, 1, None),
        ("memory_budget", 2**30, 1, "2.0GiB"),
        ("teacher", "a/b", 1, None),
        ("steps", None, 1, None),
    ],
)
def test_a_step_is_twice_half_or_the_next_choice_and_never_beyond_what_is_accepted(name, value, step, text):
    assert stepped(name, value, step) == text


def test_values_around_are_in_their_order_and_the_present_one_is_among_them():
    assert values_around("student_batch", 2) == ["1", "2", "4", "8"]
    assert values_around("gradient_checkpointing", True) == ["on", "off"]


def test_words_speak_of_the_phase_that_changes_most_and_say_what_does_not_fit():
    tries = [Try("1", "1", plan_of(300 * MIB)), Try("2", "2", plan_of(500 * MIB)), Try("4", "4", plan_of(900 * MIB))]
    tries[2] = replace(tries[2], plan=plan_of(900 * MIB, fits=False))
    assert tries_words(tries, 80) == "train with 1: 300 MiB · 2: 500 MiB · 4: 900 MiB does not fit"
    assert tries_words(tries, 40) == "train with 1: 300 MiB · 2: 500 MiB"


def test_words_speak_of_time_where_memory_is_the_same_and_of_nothing_where_all_is():
    times = [Try("1", "1", plan_of(300 * MIB, seconds=60)), Try("2", "2", plan_of(300 * MIB, seconds=600))]
    assert tries_words(times, 80) == "train with 1: 60 s · 2: 10 min"
    assert tries_words([times[0], times[0]], 80) == ""


def with_choices(each: Plan, **values: object) -> Plan:
    return replace(each, choices=tuple(Choice(name, value, "planner", "") for name, value in values.items()))


def test_values_with_which_other_settings_change_too_are_marked_and_the_settings_named():
    tries = [
        Try(str(batch), str(batch), with_choices(
            plan_of(size * MIB), student_batch=batch, gradient_accumulation=4 // batch, ram_budget=batch,
            gradient_checkpointing=batch > 2,
        ))
        for batch, size in ((1, 300), (2, 400), (4, 350))
    ]  # fmt: skip
    named = [replace(each, plan=replace(each.plan, choices=each.plan.choices[1:])) for each in tries]
    words = "train with 1: 300 MiB · 2: 400 MiB · 4*: 350 MiB"
    assert tries_words(named, 200, "2") == f"{words} (* gradient_checkpointing changes too)"
    assert tries_words(named, 80, "2") == "train with 2: 400 MiB · 4*: 350 MiB (* gradient_checkpointing changes too)"
    assert tries_words(named, 60, "2") == "train with 2: 400 MiB · 4*: 350 MiB (* others change too)"
    assert tries_words(named, 80, "4") == "train with 2*: 400 MiB · 4: 350 MiB (* gradient_checkpointing changes too)"
    assert tries_words(named[:2], 200, "2") == "train with 1: 300 MiB · 2: 400 MiB"
    assert tries_words(named, 30, "2") == "", "a value alone compares with nothing"


def test_present_value_is_among_those_that_have_room():
    tries = [Try(str(batch), str(batch), plan_of(batch * 100 * MIB)) for batch in (1, 2, 4, 8, 16)]
    assert tries_words(tries, 55, "4") == "train with 2: 200 MiB · 4: 400 MiB · 8: 800 MiB"
    assert tries_words(tries, 40, "8") == "train with 8: 800 MiB · 16: 1.6 GiB"
    assert tries_words(tries, 70, "4") == "train with 1: 100 MiB · 2: 200 MiB · 4: 400 MiB · 8: 800 MiB"


def test_what_cannot_be_is_said_and_nobody_waits_for_what_nobody_wants():
    asked = RunConfig.parse({"student_batch": 2, "use_recommended": True})
    seen: list[int | None] = []

    def make_plan(config: RunConfig) -> Plan:
        seen.append(config.student_batch)
        return plan_of(300 * MIB)

    found = tried("student_batch", ["1", "0", "4"], asked, make_plan, lambda: False)
    assert seen == [1, 4]
    assert [each.plan is None for each in found] == [False, True, False]
    assert tried("student_batch", ["1"], asked, make_plan, lambda: True) == []
