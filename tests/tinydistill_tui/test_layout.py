"""One guard for every screen: nothing visible lies outside, no text is cut, the keys are whole."""

import contextlib

import pytest
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from tests.tinydistill_tui.fixtures import held, make_run
from tests.tinydistill_tui.screen import lines_of, text_of, until, watching
from tinydistill_tui.screens.runs import RunsScreen

# Where a text may end in an ellipsis at 80x24: what is cut there stands whole on another screen, or can be copied.
MAY_BE_CUT = ("y copies:", "│before", "│after", "│teacher", "step 214/287, 33 min…", "There was no room")


async def show(app, pilot, scene):
    if scene == "runs":
        app.switch_mode("runs")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.summaries, "the runs are read")
    elif scene == "help":
        await pilot.press("question_mark")
    elif scene == "leave":
        await pilot.press("q")
    elif scene == "stop":
        await pilot.press("S")
    await pilot.pause(0.1)


def outside(app):
    width, height = app.size
    found = []
    for widget in app.screen.walk_children():
        if not widget.is_on_screen or widget.region.area == 0 or not widget.display:
            continue
        scrolled = any(getattr(parent, "max_scroll_y", 0) for parent in widget.ancestors)
        region = widget.region
        if not scrolled and not (region.x >= 0 and region.right <= width and region.y >= 0 and region.bottom <= height):
            found.append(f"{widget!r} {region}")
    return found


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize(
    "scene",
    [
        "starting",
        "scoring",
        "training",
        "paused",
        "stopped",
        "failed",
        "done",
        "worse",
        "runs",
        "help",
        "leave",
        "stop",
    ],
)
async def test_nothing_is_outside_and_nothing_is_cut(runs_folder, scene, size):
    inner = "training" if scene in ("runs", "help", "leave", "stop") else scene
    path = make_run(runs_folder, scene=inner)
    if scene == "runs":
        for other in ("stopped", "failed", "done", "lost"):
            make_run(runs_folder, f"{other}-run", other)
    live = inner not in ("stopped", "failed", "done", "worse")
    with held(path) if live else contextlib.nullcontext():
        async with watching(path, size=size) as (app, pilot):
            await show(app, pilot, scene)
            assert outside(app) == []
            cut = [
                line
                for line in lines_of(app)
                if "…" in line.replace("stopping…", "") and not any(words in line for words in MAY_BE_CUT)
            ]
            assert cut == []
            for footer in app.screen.query(Footer):
                keys = list(footer.query(FooterKey))
                assert keys
                assert footer.max_scroll_x == 0
                assert all(key.region.right <= size[0] for key in keys)
                assert len(keys) <= 8
            assert len(lines_of(app)) == size[1]


@pytest.mark.parametrize("size", [(60, 16), (40, 10), (20, 5), (10, 3), (200, 60)])
@pytest.mark.parametrize("scene", ["training", "failed", "done", "runs"])
async def test_smaller_and_larger_windows_show_something_and_never_fail(runs_folder, scene, size):
    path = make_run(runs_folder, scene="training" if scene == "runs" else scene)
    with held(path) if scene in ("training", "runs") else contextlib.nullcontext():
        async with watching(path, size=size) as (app, pilot):
            await show(app, pilot, scene)
            assert text_of(app).strip()
            await pilot.press("question_mark", "escape")
