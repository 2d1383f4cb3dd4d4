import re
import threading

import pytest
from textual.color import Color

from tests.tinydistill_tui.fixtures import held, make_run
from tests.tinydistill_tui.screen import text_of, until, watching
from tinydistill_tui import palette
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.screens.runs import RunsScreen
from tinydistill_tui.terminal import appearance
from tinydistill_tui.work import runs


def luminance(color):
    parts = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in (color.normalized)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrasts(app):
    """WCAG contrast of every piece of text with what is behind it, and the text."""
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            style = segment.style
            if segment.text.strip() and style is not None and style.color is not None and style.bgcolor is not None:
                light, dark = sorted(
                    (luminance(Color.from_rich_color(c)) for c in (style.color, style.bgcolor)), reverse=True
                )
                yield (light + 0.05) / (dark + 0.05), segment.text


# Lines and bars are no text: WCAG asks 4.5 of text.
DRAWN = re.compile(r"^[\s─│╭╮╰╯┄╌·█▏▎▍▌▋▊▉▁▂▃▄▅▆▇\u2800-\u28ff|]*$")


@pytest.mark.parametrize("no_color", [False, True])
async def test_text_stands_out_in_every_theme_with_and_without_colour(runs_folder, monkeypatch, no_color):
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    path = make_run(runs_folder)
    faint = {}
    with held(path):
        async with watching(path) as (app, pilot):
            for theme in sorted(app.available_themes):
                app.theme = theme
                await pilot.pause(0.05)
                assert "● training" in text_of(app)
                if no_color and theme.startswith("ansi"):
                    assert app.theme == appearance.FALLBACK_THEME
                elif not theme.startswith("ansi"):  # the terminal's own colours are not ours to measure
                    found = [(round(r, 1), words) for r, words in contrasts(app) if r < 4.49 and not DRAWN.match(words)]
                    if found:
                        faint[theme] = found
    assert faint == {}


async def test_words_that_matter_less_are_fainter_than_the_others(runs_folder):
    path = make_run(runs_folder, scene="stopped")
    async with watching(path) as (app, _):
        by_words = {words.strip(): ratio for ratio, words in contrasts(app)}
        label = next(ratio for words, ratio in by_words.items() if "predicted 1.1" in words)
        assert label < next(ratio for words, ratio in by_words.items() if "elapsed" in words)


async def test_own_theme_is_the_usual_one():
    app = TinyDistillApp()
    assert app.theme == "tinydistill"


@pytest.mark.parametrize("scene", ["training", "done", "failed"])
async def test_ascii_leaves_nothing_else_on_the_screen(runs_folder, scene):
    path = make_run(runs_folder, scene=scene)
    async with watching(path, ascii=True) as (app, pilot):
        assert text_of(app).isascii(), [line for line in text_of(app).splitlines() if not line.isascii()]
        app.switch_mode("runs")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.summaries, "the runs are read")
        await pilot.pause(0.1)
        assert text_of(app).isascii()
        await pilot.press("question_mark")
        await pilot.pause(0.1)
        assert text_of(app).isascii()


async def test_palette_attaches_to_a_run(runs_folder):
    path = make_run(runs_folder, scene="stopped")
    make_run(runs_folder, "letters-0410", "paused")
    async with watching(path) as (app, pilot):
        await pilot.press("colon")
        await until(pilot, lambda: "attach" in text_of(app), "the palette is open")
        await pilot.press(*"attach letters")
        await until(pilot, lambda: "attach letters-0410" in text_of(app), "the run is found")
        await pilot.press("enter", "enter")
        await until(
            pilot, lambda: app.run_path.name == "letters-0410" and "letters-0410" in text_of(app), "it is shown"
        )


async def test_screenshot_is_saved_beside_the_run(runs_folder):
    path = make_run(runs_folder, scene="stopped")
    async with watching(path) as (_, pilot):
        await pilot.press("f12")
        await until(pilot, lambda: list((path / "screenshots").glob("*.svg")), "the file is there")
        assert "<svg" in next((path / "screenshots").glob("*.svg")).read_text()


async def test_slow_terminals_get_no_animation(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert TinyDistillApp().animation_level == "full"
    monkeypatch.setenv("SSH_CONNECTION", "a b")
    assert TinyDistillApp().animation_level == "none"
    monkeypatch.delenv("SSH_CONNECTION")
    monkeypatch.setenv("TERM", "tmux-256color")
    assert TinyDistillApp().animation_level == "none"


async def test_slow_disk_does_not_keep_the_palette_from_what_it_has_found(runs_folder, monkeypatch):
    given_up = threading.Event()
    monkeypatch.setattr(palette, "FIND_SECONDS", 0.05)
    monkeypatch.setattr(runs, "find", lambda: given_up.wait(60) and [])
    path = make_run(runs_folder)
    try:
        async with watching(path) as (app, pilot):
            await pilot.press("colon", *"screenshot")
            await until(pilot, lambda: "Save the screen as SVG" in text_of(app), "the palette finds it", 10)
            given_up.set()
    finally:
        given_up.set()
