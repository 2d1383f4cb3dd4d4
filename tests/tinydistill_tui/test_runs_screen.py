import json

from tests.tinydistill_tui.fixtures import held, make_run
from tests.tinydistill_tui.screen import lines_of, text_of, until, watching
from tinydistill_tui.dialogs.confirm import ConfirmScreen
from tinydistill_tui.screens.models import ModelsScreen
from tinydistill_tui.screens.run import RunScreen
from tinydistill_tui.screens.runs import RunsScreen


async def go_to_runs(app, pilot, count):
    app.switch_mode("runs")
    await until(
        pilot, lambda: isinstance(app.screen, RunsScreen) and len(app.screen.summaries) == count, "the runs are read"
    )


async def test_every_run_has_a_row_with_its_state_and_live_ones_come_first(runs_folder):
    path = make_run(runs_folder, "a-live")
    for scene in ("stopped", "failed", "done", "lost"):
        make_run(runs_folder, f"run-{scene}", scene)
    with held(path):
        async with watching(path) as (app, pilot):
            await go_to_runs(app, pilot, 5)
            screen = text_of(app)
            assert "5 runs · 1 running" in screen
            for words in ("● training", "■ stopped", "✗ failed", "✓ done", "? lost", "64 %"):
                assert words in screen
            assert "a-live" in lines_of(app)[3]
            assert "Qwen/Qwen2.5-1.5B-Instruct → Qwen/Qwen2.5-0.5B" in screen
            assert "pid 48213" in screen


async def test_student_that_got_worse_is_a_word_in_the_column_of_the_gap(runs_folder):
    path = make_run(runs_folder, "bad", "worse")
    report = json.loads((path / "report.json").read_text())
    (path / "report.json").write_text(json.dumps({**report, "gap_closed": -21.2}))
    async with watching(path) as (app, pilot):
        await go_to_runs(app, pilot, 1)
        assert "worse " in lines_of(app)[3]
        assert "-" not in lines_of(app)[3]


async def test_enter_opens_the_run_under_the_cursor(runs_folder):
    make_run(runs_folder, "one", "stopped")
    path = make_run(runs_folder, "two", "lost")
    async with watching(path) as (app, pilot):
        await go_to_runs(app, pilot, 2)
        target = next(each for each in app.screen.summaries if each.name == "one")
        if app.screen.chosen.path != target.path:
            await pilot.press("down")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and "one" in lines_of(app)[0], "it is shown")
        await until(pilot, lambda: "stopped" in lines_of(app)[0], "its events are read")


async def test_live_run_is_not_deleted_and_others_only_after_asking(runs_folder):
    live = make_run(runs_folder, "live")
    dead = make_run(runs_folder, "dead", "lost")
    with held(live):
        async with watching(live) as (app, pilot):
            await go_to_runs(app, pilot, 2)
            await pilot.press("D")
            await until(pilot, lambda: "a running run is not deleted" in text_of(app), "refused")
            await pilot.press("down", "D")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks")
            assert "Delete dead?" in text_of(app)
            assert app.focused.id == "answer-keep"
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen), "kept")
            assert dead.exists()
            await pilot.press("D")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks again")
            await pilot.press("d")
            await until(pilot, lambda: not dead.exists() and len(app.screen.summaries) == 1, "gone")
    assert live.exists()


async def test_several_can_be_selected_and_deleted_at_once(runs_folder):
    paths = [make_run(runs_folder, name, "lost") for name in ("one", "two", "three")]
    async with watching(paths[0]) as (app, pilot):
        await go_to_runs(app, pilot, 3)
        await pilot.press("space", "space", "D")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks")
        assert "2 folders" in text_of(app)
        await pilot.press("d")
        await until(pilot, lambda: sum(path.exists() for path in paths) == 1, "two are gone")


async def test_filter_shows_what_has_the_words(runs_folder):
    path = make_run(runs_folder, "one", "lost")
    make_run(runs_folder, "two", "stopped")
    async with watching(path) as (app, pilot):
        await go_to_runs(app, pilot, 2)
        await pilot.press("slash", *"stopped")
        await until(pilot, lambda: app.screen._table.row_count == 1, "one row")
        assert app.screen.chosen.name == "two"
        await pilot.press("escape")
        await until(pilot, lambda: app.screen._table.row_count == 2, "both rows")


async def test_two_live_runs_and_a_run_that_appears_are_listed(runs_folder):
    one, two = make_run(runs_folder, "one"), make_run(runs_folder, "two", "scoring")
    with held(one), held(two):
        async with watching(one) as (app, pilot):
            await go_to_runs(app, pilot, 2)
            assert "2 runs · 2 running" in text_of(app)
            make_run(runs_folder, "three", "done")
            await pilot.press("f5")
            await until(pilot, lambda: "3 runs · 2 running" in text_of(app), "the new one is there")


async def test_no_runs_is_a_sentence(runs_folder):
    path = make_run(runs_folder, "one", "lost")
    async with watching(path) as (app, pilot):
        await go_to_runs(app, pilot, 1)
        (path / "run.json").unlink()
        await pilot.press("f5")
        await until(pilot, lambda: "There are no runs yet" in text_of(app), "it says so")


async def test_another_run_like_this_one_begins_with_what_it_asked(runs_folder):
    make_run(runs_folder, "notes-0412", "done")
    async with watching(None) as (app, pilot):
        app.switch_mode("runs")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.summaries, "the runs are read")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen), "the models are asked for")
        assert app.screen.draft.get("student_batch") == "2"
        assert app.screen.draft.get("teacher") == "Qwen/Qwen2.5-1.5B-Instruct"
        assert app.screen.draft.get("output_dir") == ""


async def test_home_and_end_go_to_the_first_and_the_last_run(runs_folder):
    paths = [make_run(runs_folder, name=f"run-{number}", scene="stopped") for number in range(4)]
    async with watching(paths[0]) as (app, pilot):
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen), "the list of runs")
        table = app.screen.query_one("#runs")
        await until(pilot, lambda: table.row_count == 4, "the runs are there")
        await pilot.press("end")
        assert table.cursor_row == 3
        await pilot.press("home")
        assert table.cursor_row == 0
