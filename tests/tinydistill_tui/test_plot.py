import pytest

from engine.machine.device import CPU, Device
from tests.tinydistill_tui.fixtures import NOW, events_of
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.watch import fold
from tinydistill_tui.widgets.braille import Canvas
from tinydistill_tui.widgets.plot import Curve, Drawing, Level, draw
from tinydistill_tui.widgets.run_drawings import METRICS, memory_drawing, metric_drawing


def text_of(drawing, width=40, height=8):
    return [line.plain for line in draw(drawing, width, height)]


def test_braille_dots_are_where_they_are_set():
    canvas = Canvas(2, 1)
    canvas.dot(0, 0)
    canvas.dot(3, 3)
    canvas.dot(4, 0)  # outside
    assert canvas.cells() == {(0, 0): "⠁", (1, 0): "⢀"}
    canvas.line(0, 3, 3, 0)
    assert canvas.cells()[(0, 0)] == chr(0x2800 | 0x01 | 0x40 | 0x20)


def test_highest_is_at_the_top_and_newest_at_the_right():
    samples = [(float(n), float(n), float(n)) for n in range(11)]
    lines = text_of(Drawing("x", x_end=10.0, curves=[Curve(samples)]), 24, 6)
    assert lines[0].startswith("10.00")
    assert lines[0].rstrip()[-1] in "⠁⠈⠉⠊⠑⠒⠔⡠⢀⠤⣀⠋⠃⠘⠚"
    assert lines[4].startswith(" 0.00")
    assert lines[4][5] != " "
    assert lines[0][5:15].strip() == ""


def test_levels_are_named_at_the_right_and_valued_at_the_left():
    drawing = Drawing(
        "x",
        curves=[Curve([(0.0, 1.0, 1.0), (1.0, 1.0, 1.0)])],
        levels=[Level(0, 1, 3.0, "┄", "", "budget")],
        from_zero=True,
    )
    lines = text_of(drawing)
    assert lines[0].startswith("3.00┄┄")
    assert lines[0].endswith(" budget")


def test_logarithm_leaves_out_what_has_none():
    samples = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2.0, 100.0, 100.0)]
    lines = text_of(Drawing("x", x_end=2.0, curves=[Curve(samples)], log=True))
    assert lines[0].startswith("100.00")
    assert lines[6].strip().startswith("1.00")


@pytest.mark.parametrize("samples", [[], [(0.0, 5.0, 5.0)], [(0.0, 0.0, 0.0)] * 3, [(0.0, -1.0, 1e300)]])
@pytest.mark.parametrize("size", [(40, 8), (5, 3), (1, 3), (12, 2)])
@pytest.mark.parametrize("log", [False, True])
def test_any_samples_in_any_size_are_drawn(samples, size, log):
    lines = draw(Drawing("x", curves=[Curve(samples)], levels=[Level(0, 1, 2.0, "┄", "", "budget")], log=log), *size)
    assert all(line.cell_length <= size[0] for line in lines)
    assert len(lines) <= size[1]


@pytest.mark.parametrize("scene", ["starting", "preparing", "scoring", "training", "done", "backed-off"])
def test_runs_drawings_fit_their_size(scene):
    view = fold(RunView(), events_of(scene, "r"))
    drawings = [memory_drawing(view, NOW, device=CPU)]
    drawings += [
        metric_drawing(view, metric, by_step=step, log=log)
        for metric in METRICS
        for step in (True, False)
        for log in (True, False)
    ]
    for drawing in drawings:
        lines = draw(drawing, 38, 6)
        assert all(line.cell_length <= 38 for line in lines)


def test_memory_drawing_has_budget_and_one_prediction_for_each_phase():
    drawing = memory_drawing(fold(RunView(), events_of("training", "r")), NOW, device=Device.of("cuda:0"))
    assert drawing.title == "GPU memory, GiB"
    assert [level.name for level in drawing.levels] == ["predicted", "predicted", "budget"]
    assert [round(level.value, 1) for level in drawing.levels] == [1.1, 2.6, 3.0]
    assert [word for _, word in drawing.ticks] == ["prepare", "score", "train", "3 h 11"]


@pytest.mark.parametrize(
    ("ranks", "title", "note"),
    [
        (None, "GPU memory, GiB", ""),
        ([{"rank": 0, "bytes": 2**30}], "GPU memory, GiB", ""),
        ("rubbish", "GPU memory, GiB", ""),
        ([1, {"rank": 0}, {"rank": 1, "bytes": None}], "GPU memory, GiB", ""),
        (
            [{"rank": 0, "bytes": 2**30}, {"rank": 1, "bytes": 3 * 2**29}],
            "GPU memory of 2 processes, GiB",
            "each 1.0 to 1.5",
        ),
    ],
)
def test_memory_drawing_tells_the_memory_of_each_process(ranks, title, note):
    event = {"time": NOW, "kind": "memory", "phase": "student", "bytes": 5 * 2**29, "peak_bytes": 5 * 2**29}
    view = fold(RunView(), [*events_of("training", "r"), event | ({} if ranks is None else {"ranks": ranks})])
    drawing = memory_drawing(view, NOW, device=Device.of("cuda:0"))
    assert (drawing.title, drawing.note) == (title, note)
