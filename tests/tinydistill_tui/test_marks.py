from rich.cells import cell_len

from tinydistill_tui.view.marks import MARKS, bar, plain, spark


def test_every_mark_is_one_cell_and_has_an_ascii_likeness_of_its_own():
    assert all(cell_len(mark) == 1 for mark in MARKS.values())
    likenesses = [plain(mark) for mark in MARKS.values()]
    assert len(set(likenesses)) == len(likenesses)


def test_plain_keeps_the_width_and_leaves_only_ascii():
    for words in ("┌─ ⣀⡠⠤ ✓ done · 3 h …", "日本語 – café", "▏▎▍▌▋▊▉█", bar(0.37, 20, limit=0.8), "é"):
        assert plain(words).isascii()
        assert cell_len(plain(words)) == cell_len(words)


def test_bar_is_as_full_as_the_share():
    assert bar(0, 4) == "····"
    assert bar(0.5, 4) == "██··"
    assert bar(0.53125, 4) == "██▏·"
    assert bar(7, 4) == "████"
    assert bar(0.25, 4, limit=0.75) == "█··│"
    assert bar(0.5, 0) == ""


def test_spark_shows_the_last_values_between_their_extremes():
    assert spark([9, 9, 0, 7, 7], 3) == "▁██"
    assert spark([5, 5], 4) == "▁▁"
    assert spark([], 4) == ""
    assert spark([1, 2], 0) == ""
