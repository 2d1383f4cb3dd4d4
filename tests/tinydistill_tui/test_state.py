import pytest

from tests.tinydistill_tui.fixtures import NOW, events_of
from tinydistill_tui.view import run_words
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.state import RunState, run_state
from tinydistill_tui.view.watch import fold


@pytest.mark.parametrize(
    ("scene", "live", "word"),
    [
        ("starting", True, "starting"),
        ("preparing", True, "preparing"),
        ("scoring", True, "scoring"),
        ("training", True, "training"),
        ("paused", True, "paused"),
        ("stopped", False, "stopped"),
        ("failed", False, "failed"),
        ("done", False, "done"),
        ("lost", False, "lost"),
        ("training", False, "lost"),
    ],
)
def test_state_comes_from_lock_and_last_event(scene, live, word):
    state = run_state(fold(RunView(), events_of(scene, "r")), live=live, now=NOW)
    assert state.word == word
    assert state.live == live
    assert state.resumable == (word in ("stopped", "failed", "lost"))


def test_silence_is_quiet_and_not_lost_while_the_lock_is_held():
    view = fold(RunView(), events_of("preparing", "r"))
    assert view.last_time is not None
    assert run_state(view, live=True, now=view.last_time + 14).word == "preparing"
    assert run_state(view, live=True, now=view.last_time + 40).word == "quiet 40 s"


def test_long_steps_are_not_quiet_before_five_usual_gaps():
    events = [{"time": NOW, "kind": "phase_started", "phase": "student"}]
    events += [{"time": NOW + 60 * n, "kind": "metric", "step": n} for n in range(1, 20)]
    view = fold(RunView(), events)
    assert view.last_time is not None
    assert run_state(view, live=True, now=view.last_time + 200).word == "training"
    assert run_state(view, live=True, now=view.last_time + 301).word == "quiet 5 min"


def test_run_that_was_just_sent_off_is_starting_and_lost_only_later():
    assert run_state(RunView(), live=False, now=NOW + 5, created=NOW).word == "starting"
    assert run_state(RunView(), live=False, now=NOW + 30, created=NOW).word == "lost"
    stopped = fold(RunView(), events_of("stopped", "r"))
    assert run_state(stopped, live=False, now=NOW, created=NOW - 1).word == "starting"


def test_backing_off_and_evaluating_have_words_of_their_own():
    events = events_of("backed-off", "r")
    at = next(i for i, event in enumerate(events) if event["kind"] == "back_off")
    view = fold(RunView(), events[: at + 1])
    assert view.last_time is not None
    assert run_state(view, live=True, now=view.last_time).word == "backing off"
    view = fold(
        view,
        [
            {"time": view.last_time, "kind": "phase_started", "phase": "student"},
            {
                "time": view.last_time,
                "kind": "progress",
                "phase": "student",
                "done": 1,
                "total": 9,
                "unit": "hold-out rows",
            },
        ],
    )
    assert view.last_time is not None
    assert run_state(view, live=True, now=view.last_time).word == "evaluating"


@pytest.mark.parametrize("word", ["pausing", "paused", "stopping", "stopped", "failed", "done", "lost", "reading 7 %"])
def test_only_a_running_run_is_said_to_continue(word):
    assert run_words.verdict(RunState(word, "look")) is not None, "else the log's sentence stands there"
    assert run_words.verdict(RunState("training", "live", live=True)) is None
