import pytest

from engine.channel.events import EventWriter, read_events
from engine.channel.words import headline_of, log_line


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"kind": "metric", "step": 210, "loss": 2.316, "learning_rate": 1.1e-05, "grad_norm": 0.82},
            "step 210 loss 2.316 lr 1.1e-05 grad 0.820",
        ),
        (
            {"kind": "shard", "path": "cache/shard-00003.h5", "tokens": 1_880_000, "bytes": 64 * 2**20},
            "shard shard-00003.h5: 1.9 M tokens, 64.0 MiB",
        ),
        ({"kind": "checkpoint", "path": "/x/step-00000210", "bytes": 2**30}, "checkpoint step-00000210, 1.0 GiB"),
        (
            {"kind": "evaluation", "which": "student_before", "holdout_loss": 2.9, "perplexity": 18.5},
            "hold-out, student before: loss 2.900, perplexity 18.50",
        ),
        ({"kind": "evaluation", "which": "result", "gap_closed": 0.64}, "gap to the teacher closed: 64 %"),
        (
            {"kind": "evaluation", "which": "result", "gap_closed": None},
            "gap to the teacher: none to close, the loss was at the teacher's or below it at the beginning",
        ),
        ({"kind": "control", "command": "stop", "by": "me", "accepted": False}, "stop requested by me (refused)"),
        ({"kind": "error", "what": "No room.", "why": "", "todo": "Free some."}, "No room. Free some."),
        (
            {"kind": "phase_finished", "phase": "teacher", "seconds": 5590, "peak_bytes": 2**30},
            "score finished in 1 h 33, peak 1.0 GiB",
        ),
        ({"kind": "from a newer version", "x": 1}, "from a newer version x=1"),
    ],
)
def test_event_in_words(event, words):
    line = log_line(event)
    assert line is not None
    assert line.text == words


def test_what_comes_by_the_second_is_no_line():
    assert log_line({"kind": "memory"}) is None
    assert log_line({"kind": "progress"}) is None


KINDS = (
    "run_started", "run_resumed", "plan", "phase_started", "phase_finished", "progress", "memory", "metric",
    "evaluation", "shard", "checkpoint", "control", "back_off", "log", "error", "run_finished",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "odd", [{}, {"level": 3, "path": [], "loss": "x", "tokens": {}, "choices": 5, "seconds": None}]
)
def test_any_event_however_odd_has_words_or_none(kind, odd):
    line = log_line({"kind": kind, **odd})
    assert (line is None) == (kind in ("progress", "memory"))
    headline_of({"kind": kind, **odd})


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"kind": "log", "level": "warning", "message": "Memory is short."}, "warning: Memory is short."),
        ({"kind": "log", "level": "info", "message": "Reading.", "code": "stage"}, "Reading."),
        ({"kind": "log", "level": "info", "message": "Share 1.", "code": "share"}, "Share 1."),
        ({"kind": "log", "level": "info", "message": "Not for all.", "code": "resumed-checkpoint"}, None),
        ({"kind": "control", "state": "paused"}, "paused"),
        ({"kind": "control", "command": "stop", "by": "me", "accepted": True}, None),
        (
            {"kind": "back_off", "field": "student_batch", "from": 4, "to": 2, "reason": "out of memory"},
            "backed off: student_batch 4 to 2 (out of memory)",
        ),
        ({"kind": "evaluation", "which": "teacher", "holdout_loss": 2.5}, "hold-out, teacher: loss 2.500"),
        ({"kind": "evaluation", "which": "result", "gap_closed": 0.5}, None),
        ({"kind": "metric", "step": 1}, None),
        ({"kind": "memory", "bytes": 1}, None),
    ],
)
def test_displays_with_little_room_show_what_a_user_decides_by(event, words):
    assert headline_of(event) == words


def test_run_log_has_the_same_words_as_the_wizard(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl", phase="teacher", log_path=tmp_path / "run.log")
    writer.write("shard", path="shard-00000.h5", tokens=120, bytes=2**20)
    writer.write("memory", bytes=5)
    writer.log("warning", "Memory\nis short.", "memory-short")
    writer.close()
    lines = (tmp_path / "run.log").read_text().splitlines()
    shown = [line for event in read_events(tmp_path / "events.jsonl") if (line := log_line(event)) is not None]
    assert [line[20:] for line in lines] == [f"{line.level:7} {line.text}" for line in shown]
    assert len(lines) == 2
