"""The bars of the plan: on a scale on which what is changed is seen."""

from textual.app import App

from tests.tinydistill_tui.fixtures import GIB
from tinydistill_tui.view.plan_facts import Need
from tinydistill_tui.widgets.memory_bars import MemoryBars, scale_bytes


def test_bar_ends_a_third_beyond_the_budget_or_with_the_device_and_holds_what_is_needed():
    assert scale_bytes(Need("train", "RAM", GIB, 3 * GIB, 64 * GIB)) == 4 * GIB
    assert scale_bytes(Need("train", "RAM", GIB, 3 * GIB, int(3.5 * GIB))) == 3.5 * GIB
    assert scale_bytes(Need("train", "RAM", 9 * GIB, 3 * GIB, 8 * GIB)) == 9 * GIB


async def test_small_budget_of_a_large_machine_is_filled_and_bars_of_one_memory_have_one_scale():
    class Bars(App[None]):
        def compose(self):
            yield MemoryBars()

    app = Bars()
    async with app.run_test(size=(78, 4)) as pilot:
        app.query_one(MemoryBars).needs = (
            Need("score", "RAM", GIB // 4, GIB // 2, 64 * GIB),
            Need("train", "RAM", GIB, GIB // 2, 64 * GIB),
        )
        await pilot.pause()
        score, train = (strip.text for strip in app.screen._compositor.render_strips()[:2])
        assert score.startswith("Peak RAM score  ██████······│···········")
        assert train.startswith("Peak RAM train  ████████████│███████████")
