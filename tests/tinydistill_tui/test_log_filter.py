import pytest

from engine.channel.words import LogLine
from tinydistill_tui.view.log_filter import LogFilter

LINES = [
    LogLine(0, "debug", "a detail"),
    LogLine(1, "info", "step 1 loss 2.5"),
    LogLine(2, "warning", "disk is getting full"),
    LogLine(3, "error", "no room (at all)"),
]


def test_level_hides_what_is_below_it():
    assert [len(LogFilter(level=level).shown(LINES)) for level in ("debug", "info", "warning", "error")] == [4, 3, 2, 1]


def test_words_are_looked_for_as_they_are_and_without_case():
    assert LogFilter().with_typed("(AT").shown(LINES) == [LINES[3]]
    assert LogFilter().with_typed("warn").shown(LINES) == [LINES[2]]


def test_slashes_make_a_regular_expression():
    assert LogFilter().with_typed("/loss 2\\.[0-9]/").shown(LINES) == [LINES[1]]
    assert LogFilter().with_typed("/full|room").shown(LINES) == LINES[2:]


def test_bad_expression_is_marked_and_the_old_filter_stays():
    good = LogFilter().with_typed("/full")
    bad = good.with_typed("/full[")
    assert bad.bad
    assert bad.typed == "/full["
    assert bad.shown(LINES) == good.shown(LINES)
    assert not bad.with_typed("/full[x]").bad


def test_keeping_all_lines_hides_only_by_level():
    assert LogFilter().with_typed("full").shown(LINES, keep_all=True) == LINES[1:]


@pytest.mark.parametrize(
    ("level", "typed", "sentence"),
    [
        ("warning", "", "No warnings or errors in this log. i shows all lines."),
        ("error", "", "No errors in this log. i shows all lines."),
        ("error", "disk", "No line matches disk. Esc shows all lines."),
        ("info", "/a.c/", "No line matches /a.c/. Esc shows all lines."),
        ("info", "", "No line to show yet."),
    ],
)
def test_a_log_of_which_nothing_is_shown_says_what_hides_it_and_the_key_that_ends_it(level, typed, sentence):
    assert LogFilter(level).with_typed(typed).nothing() == sentence
