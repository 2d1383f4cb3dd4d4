import pytest

from engine.channel.words import log_line


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
