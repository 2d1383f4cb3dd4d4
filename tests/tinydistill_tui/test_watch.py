import dataclasses
import random

import pytest

from tests.tinydistill_tui.fixtures import GIB, NOW, SCENES, events_of
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.watch import MAX_LOG_LINES, fold


def view_of(scene):
    return fold(RunView(), events_of(scene, "r"))


@pytest.mark.parametrize("scene", SCENES)
def test_view_does_not_depend_on_how_the_events_are_cut(scene):
    events = events_of(scene, "r")
    whole = fold(RunView(), events)
    pieces, random_source = RunView(), random.Random(1)
    rest = list(events)
    while rest:
        size = random_source.randrange(1, 40)
        pieces, rest = fold(pieces, rest[:size]), rest[size:]
    assert pieces == whole


def test_folding_leaves_the_old_view_as_it_was():
    events = events_of("training", "r")
    before = fold(RunView(), events[:200])
    copy = dataclasses.replace(before, phases=dict(before.phases), metrics=dict(before.metrics))
    fold(before, events[200:])
    assert before == copy


def test_numbers_are_those_of_the_events():
    view = view_of("training")
    teacher, student = view.phases["teacher"], view.phases["student"]
    assert (teacher.state, teacher.seconds, teacher.peak_bytes) == ("done", 5590.0, int(1.08 * GIB))
    assert (student.state, student.done, student.total, student.unit) == ("running", 214, 287, "steps")
    assert student.eta_seconds == pytest.approx(73 * 27.3)
    assert student.predicted_peak_bytes == int(2.6 * GIB)
    assert (view.step, view.total_steps) == (214, 287)
    assert (view.shards, view.cached_tokens, view.cached_bytes) == (5, 9_400_000, 324_000_000)
    assert (view.checkpoint_step, view.checkpoint_bytes) == (200, GIB)
    assert [notice.text for notice in view.notices] == ["The disk is getting full: 3.1 GiB free."]


def test_time_between_two_sessions_is_no_elapsed_time():
    events = events_of("stopped", "r")
    worked = events[-1]["time"] - events[0]["time"]
    stopped = fold(RunView(), events)
    assert stopped.elapsed_seconds(NOW) == pytest.approx(worked)
    resumed = fold(
        stopped,
        [
            {"time": NOW, "kind": "run_resumed", "pid": 5},
            {"time": NOW + 1, "kind": "phase_started", "phase": "student"},
        ],
    )
    assert resumed.elapsed_seconds(NOW + 10) == pytest.approx(worked + 10)
    assert resumed.phase_starts[-1][0] == pytest.approx(worked + 1)
    assert resumed.finished is None
    assert resumed.phases["student"].state == "running"
    assert resumed.phases["teacher"].state == "done"


def test_curve_keeps_spikes_and_stays_small():
    events = [
        {"time": n, "kind": "memory", "phase": "student", "bytes": 10**9 if n == 7777 else 10**6} for n in range(20_000)
    ]
    series = fold(RunView(), events).memory_series
    assert len(series.buckets) <= 300
    assert max(bucket.high for bucket in series.buckets) == 10**9
    assert series.count == 20_000


def test_log_keeps_the_newest_lines_and_counts_the_others():
    events = [{"time": n, "kind": "log", "level": "info", "message": f"line {n}"} for n in range(MAX_LOG_LINES + 10)]
    view = fold(RunView(), events)
    assert (len(view.log), view.log_dropped) == (MAX_LOG_LINES, 10)
    assert view.log[-1].text == f"line {MAX_LOG_LINES + 9}"


def test_control_follows_the_engines_own_word():
    view = view_of("paused")
    assert view.control == "paused"
    assert (
        fold(view, [{"time": NOW, "kind": "control", "command": "resume", "by": "x", "accepted": True}]).control is None
    )
    assert fold(view, [{"time": NOW, "kind": "control", "state": "running"}]).control is None
    refused = fold(view, [{"time": NOW, "kind": "control", "command": "resume", "by": "x", "accepted": False}])
    assert refused.control == "paused"


def test_back_off_is_a_notice_until_the_phase_starts_again():
    events = events_of("backed-off", "r")
    at = next(i for i, event in enumerate(events) if event["kind"] == "back_off")
    during = fold(RunView(), events[: at + 1])
    assert during.backing_off
    assert during.notices[-1].text == "backed off: student_batch 2 to 1 (out of memory)"
    assert not fold(during, events[at + 1 :]).backing_off


def test_a_reader_of_the_end_alone_knows_the_phase():
    events = events_of("training", "r")
    view = fold(RunView(), events[-30:])
    assert view.phase == "student"
    assert view.current is not None
    assert view.current.state == "running"


ODD = [
    None,
    "",
    "x",
    -1,
    0,
    1e400,
    float("nan"),
    [],
    [1],
    {},
    {"a": {"b": []}},
    True,
    "\x1b[31mred\x1b[0m",
    "a\nb",
]


def test_no_event_however_odd_makes_it_raise():
    kinds = [
        "run_started",
        "run_resumed",
        "plan",
        "phase_started",
        "phase_finished",
        "progress",
        "memory",
        "metric",
        "evaluation",
        "shard",
        "checkpoint",
        "control",
        "back_off",
        "log",
        "error",
        "run_finished",
        "of another version",
    ]
    names = [
        "time",
        "phase",
        "done",
        "total",
        "unit",
        "rate",
        "eta_seconds",
        "bytes",
        "peak_bytes",
        "budget_bytes",
        "step",
        "total_steps",
        "loss",
        "which",
        "holdout_loss",
        "path",
        "tokens",
        "command",
        "by",
        "accepted",
        "state",
        "reason",
        "field",
        "from",
        "to",
        "level",
        "message",
        "code",
        "what",
        "why",
        "todo",
        "status",
        "exit_code",
        "choices",
        "predicted",
        "seconds",
        "pid",
        "name",
        "version",
    ]
    random_source = random.Random(2)
    view = RunView()
    for _ in range(4000):
        fields = {name: random_source.choice(ODD) for name in random_source.sample(names, 8)}
        if random_source.random() < 0.3:
            fields["phase"] = random_source.choice(["prepare", "teacher", "student"])
        view = fold(view, [{**fields, "kind": random_source.choice(kinds)}])
    assert view.events == 4000
    assert all("\x1b" not in line.text and "\n" not in line.text for line in view.log)


def test_a_phase_that_was_begun_twice_took_both_times():
    view = fold(
        RunView(),
        [
            {"time": 0, "kind": "run_started"},
            {"time": 0, "kind": "phase_started", "phase": "teacher"},
            {"time": 100, "kind": "run_finished", "status": "stopped"},
            {"time": 5000, "kind": "run_resumed"},
            {"time": 5000, "kind": "phase_started", "phase": "teacher"},
            {"time": 5030, "kind": "memory", "phase": "teacher", "bytes": 1},
            {"time": 9000, "kind": "run_resumed"},
            {"time": 9001, "kind": "phase_started", "phase": "teacher"},
            {"time": 9011, "kind": "phase_finished", "phase": "teacher", "seconds": 10.0},
        ],
    )
    assert view.phases["teacher"].seconds == 140


def test_phase_of_several_processes_tells_its_whole_time():
    before = fold(RunView(), events_of("stopped", "a-run"))
    student = {"phase": "student"}
    last = fold(
        before,
        [
            {"time": NOW, "kind": "run_resumed", "pid": 5},
            {"time": NOW + 1, "kind": "phase_started", **student},
            {"time": NOW + 481, "kind": "phase_finished", "seconds": 480.0, "peak_bytes": 1, **student},
        ],
    )
    assert "train finished in 8 min, peak 1 B; 1 h 4" in last.log[-1].text
    assert last.log[-1].text.endswith("in all")
    assert not [line for line in fold(RunView(), events_of("done", "a-run")).log if "in all" in line.text]


def _redone(seconds_of_the_first=100.0):
    """The teacher, and a student that finds some of its records gone."""
    return [
        {"time": 0.0, "kind": "run_started"},
        {"time": 0.0, "kind": "phase_started", "phase": "teacher"},
        {"time": 100.0, "kind": "phase_finished", "phase": "teacher", "seconds": seconds_of_the_first},
        {"time": 100.0, "kind": "phase_started", "phase": "student"},
        {"time": 120.0, "kind": "progress", "phase": "student", "done": 3, "total": 9, "unit": "steps",
         "rate": 1.0, "eta_seconds": 6.0},
        {"time": 130.0, "kind": "phase_started", "phase": "teacher"},
    ]  # fmt: skip


def test_only_one_phase_runs_and_one_that_is_done_again_took_both_times():
    view = fold(RunView(), _redone())
    student = view.phases["student"]
    assert (view.phases["teacher"].state, student.state, student.done, student.eta_seconds) == (
        "running", "waiting", 3, None)  # fmt: skip
    later = [
        {"time": 140.0, "kind": "phase_finished", "phase": "teacher", "seconds": 10.0},
        {"time": 140.0, "kind": "phase_started", "phase": "student"},
    ]
    view = fold(view, later)
    assert (view.phases["teacher"].state, view.phases["teacher"].seconds) == ("done", 110.0)
    assert (view.phases["student"].state, view.phases["student"].earlier_seconds) == ("running", 20.0)


def test_phase_whose_end_was_lost_is_done_once_a_later_one_runs():
    events = [event for event in events_of("training", "r") if event["kind"] != "phase_finished"]
    view = fold(RunView(), events)
    assert [phase.state for phase in view.phases.values()] == ["done", "done", "running"]
    assert view.phases["teacher"].seconds == pytest.approx(25 * 223, rel=0.01)
    view = fold(view, [{"time": NOW, "kind": "run_resumed"}])
    assert view.phases["teacher"].state == "done"  # also while the supervisor looks at what is there


def test_run_that_is_done_has_no_phase_that_waits():
    events = [event for event in events_of("done", "r") if event["kind"] != "phase_finished"]
    assert [phase.state for phase in fold(RunView(), events).phases.values()] == ["done"] * 3
