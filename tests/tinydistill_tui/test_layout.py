"""One guard for every screen: nothing visible lies outside, no text is cut, the keys are whole."""

import contextlib

import pytest
from textual.binding import ActiveBinding, Binding
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from tests.tinydistill_tui.fixtures import held, make_run
from tests.tinydistill_tui.screen import lines_of, look_at, text_of, until, watching
from tinydistill_tui.screens.runs import RunsScreen
from tinydistill_tui.terminal.key_line import fitting

# Where a text may end in an ellipsis at 80x24: what is cut there stands whole on another screen, or can be copied.
MAY_BE_CUT = (
    "y copies:",
    "│before",
    "│after",
    "│teacher",
    "step 214/287, 33 min…",
    "There was no room",
    "…                ",
)


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


def wrong_footers(app):
    """Keys below that are cut, too many, or not there: all from 80 columns on, Help always."""
    wrong = []
    for footer in app.screen.query(Footer):
        needed = {
            active.binding.description
            for active in app.screen.working_bindings().values()
            if active.binding.show and (app.size.width >= 80 or active.binding.action == "help")
        }
        if missing := needed - {key.description for key in footer.query(FooterKey)}:
            wrong.append(missing)
        keys = list(footer.query(FooterKey))
        if not keys or len(keys) > 8 or footer.max_scroll_x or any(key.region.right > app.size.width for key in keys):
            wrong.append([(key.description, key.region) for key in keys])
    return wrong


SCENES = ("starting", "scoring", "training", "paused", "stopped", "failed", "done", "worse")
BOXES = {"help": "question_mark", "leave": "q", "stop": "S", "palette": "colon"}


async def test_nothing_is_outside_and_nothing_is_cut(runs_folder):
    paths = {scene: make_run(runs_folder, f"{scene}-0412", scene) for scene in SCENES}
    live = [path for scene, path in paths.items() if scene not in ("stopped", "failed", "done", "worse")]
    with contextlib.ExitStack() as locks:
        for path in live:
            locks.enter_context(held(path))
        for size in ((80, 24), (120, 40)):
            async with watching(paths["starting"], size=size) as (app, pilot):
                for scene, path in paths.items():
                    await look_at(app, pilot, path)
                    await check(app, pilot, scene)
                    if scene == "training":
                        for box, key in BOXES.items():
                            await pilot.press(key)
                            await until(pilot, lambda: len(app.screen_stack) > 1, "the box is open")
                            if box != "palette":  # Textual's own
                                await check(app, pilot, box)
                            await pilot.press("escape")
                            await until(pilot, lambda: len(app.screen_stack) == 1, "the box is closed")
                app.switch_mode("runs")
                await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.summaries, "read")
                await check(app, pilot, "runs")


async def check(app, pilot, scene):
    assert outside(app) == [], scene
    cut = [
        line
        for line in lines_of(app)
        if "…" in line.replace("stopping…", "") and not any(words in line for words in MAY_BE_CUT)
    ]
    assert cut == [], scene
    await until(pilot, lambda: wrong_footers(app) == [], f"the keys fit: {scene}")
    assert len(lines_of(app)) == app.size.height, scene


@pytest.mark.slow
async def test_smaller_and_larger_windows_show_something_and_never_fail(runs_folder):
    paths = {scene: make_run(runs_folder, f"{scene}-0412", scene) for scene in ("training", "failed", "done")}
    with held(paths["training"]):
        async with watching(paths["training"]) as (app, pilot):
            for path in (*paths.values(), None):
                if path is not None:
                    await look_at(app, pilot, path)
                else:
                    app.switch_mode("runs")
                    await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.summaries, "read")
                for size in [(60, 16), (40, 10), (20, 5), (10, 3), (200, 60)]:
                    await pilot.resize_terminal(*size)
                    assert text_of(app).strip(), (path, size)
                    if size[0] >= 20:
                        await until(pilot, lambda: wrong_footers(app) == [], f"the keys fit: {path} {size}")
                    await pilot.press("question_mark", "escape")
                await pilot.resize_terminal(80, 24)


async def test_narrow_window_shows_whole_keys_and_help_among_them(runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path) as (app, pilot):
            await until(pilot, lambda: app.screen.query(FooterKey), "the keys are there")
            before = [key.description for key in app.screen.query(FooterKey)]
            for width in (60, 40, 24, 16, 40, 80):
                await pilot.resize_terminal(width, 24)
                await until(pilot, lambda: wrong_footers(app) == [], f"the keys fit {width}")
            assert [key.description for key in app.screen.query(FooterKey)] == before


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (80, ["Quit", "Help", "Pause", "文字"]),
        (28, ["Quit", "Help", "Pause", "文字"]),
        (27, ["Quit", "Help", "Pause"]),
        (13, ["Quit", "Help"]),
        (12, ["Help"]),
        (3, ["Help"]),
    ],
)
def test_keys_that_fit_are_the_first_ones_and_help(width, shown):
    def key(name, action, description):
        return name, ActiveBinding(None, Binding(name, action, description), True, "")

    bindings = dict(
        [
            key("q", "leave", "Quit"),
            key("f", "help", "Help"),
            key("p", "pause", "Pause"),
            key("w", "words", "文字"),
            key("v", "words", "again"),  # the same action: the footer shows its first key
        ]
    )
    found = fitting(bindings, width, lambda binding: binding.key)
    actions = {
        active.binding.action: active.binding.description for active in reversed(found.values()) if active.binding.show
    }
    assert sorted(actions.values()) == sorted(shown)
    assert found.keys() == bindings.keys(), "each of them still works"
