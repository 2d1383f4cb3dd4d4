"""Characters and colours that a terminal can draw."""

import pytest

from tinydistill_tui.terminal.appearance import draws_only_ascii


@pytest.mark.parametrize(
    ("encoding", "terminal", "ascii_only"),
    [
        ("utf-8", "xterm-256color", False),
        ("UTF-8", "tmux-256color", False),
        ("utf-16", "xterm", False),
        ("ascii", "xterm", True),
        ("ANSI_X3.4-1968", "xterm", True),
        ("iso-8859-1", "xterm", True),
        ("cp1252", "xterm", True),
        ("no-such-encoding", "xterm", True),
        (None, "xterm", True),
        ("utf-8", "linux", True),
    ],
)
def test_terminal_that_cannot_draw_gets_ascii(encoding, terminal, ascii_only):
    assert draws_only_ascii(encoding, terminal) is ascii_only
