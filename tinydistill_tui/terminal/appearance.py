"""How the screens look: two themes of our own; in any theme text that can be read, and ASCII on demand."""

from __future__ import annotations

import re
from functools import lru_cache

from rich.color import ColorType
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.theme import Theme

from tinydistill_tui.view.marks import plain

DARK = Theme(
    name="tinydistill",
    primary="#4FA8D8",
    secondary="#7C9CC4",
    accent="#F2B457",
    foreground="#DDE3EA",
    background="#12161C",
    surface="#171D25",
    panel="#222B36",
    success="#6CC08B",
    warning="#E5A84B",
    error="#E8716D",
    dark=True,
    variables={"footer-key-foreground": "#F2B457", "border-blurred": "#3A4654"},
)

LIGHT = Theme(
    name="tinydistill-light",
    primary="#1F6F9F",
    secondary="#48658C",
    accent="#8A5A00",
    foreground="#1C232B",
    background="#F6F7F9",
    surface="#EEF0F4",
    panel="#DFE4EA",
    success="#1E7A45",
    warning="#8A5A00",
    error="#B3312D",
    dark=False,
    variables={"footer-key-foreground": "#8A5A00", "border-blurred": "#B9C2CD"},
)

FALLBACK_THEME = "textual-dark"  # for NO_COLOR: Textual draws ansi themes black on black without colours


def quiet(theme: Theme) -> str:
    """The colour of words that matter less, for styles of single words: between text and background.

    ``$text-muted`` is "auto 60%": as a style within text, Textual 8.2.8 leaves its 60% out, and what should be faint
    becomes the brightest white on the screen.
    """
    colours = theme.to_color_system().generate()
    front, back = Color.parse(colours["foreground"]), Color.parse(colours["background"])
    return colours["foreground"] if front.ansi is not None else front.blend(back, 0.35).hex


def draws_only_ascii(encoding: str | None, terminal: str) -> bool:
    """Whether a terminal cannot draw lines, marks and braille: its encoding lacks them, or it is the Linux console.

    Args:
        encoding: of standard output; None where it is not known.
        terminal: ``TERM``.
    """
    try:
        "●─█⣿✓".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return terminal == "linux"


LEAST_CONTRAST = 4.5  # of text with what is behind it: Web Content Accessibility Guidelines 2.2, 1.4.3
_DRAWN = re.compile(r"[\s\u2500-\u259f\u2800-\u28ff·]*")  # lines, blocks, braille: no text


class ContrastFilter(LineFilter):
    """Moves the colour of faint text towards black or white until it can be read, whatever the theme."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments, none of them faint."""
        return [
            Segment(text, _readable(style), control)
            if style is not None and control is None and not _DRAWN.fullmatch(text)
            else Segment(text, style, control)
            for text, style, control in segments
        ]


@lru_cache(4096)
def _readable(style: Style) -> Style:
    if style.color is None or style.bgcolor is None:
        return style
    if style.color.type is not ColorType.TRUECOLOR or style.bgcolor.type is not ColorType.TRUECOLOR:
        return style  # the terminal's own colours are not known here
    front, back = Color.from_rich_color(style.color), Color.from_rich_color(style.bgcolor)
    target = max(Color(0, 0, 0), Color(255, 255, 255), key=lambda each: contrast(each, back))
    for share in range(11):
        moved = front.blend(target, share / 10)
        if contrast(moved, back) >= LEAST_CONTRAST:
            break
    return style if share == 0 else style + Style(color=moved.rich_color)


def contrast(one: Color, other: Color) -> float:
    """Contrast of two colours, 1 to 21. Source: WCAG 2.2, "contrast ratio" and "relative luminance"."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Color) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


class AsciiFilter(LineFilter):
    """Puts an ASCII likeness in place of every other sign, cell for cell."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments in ASCII."""
        return [
            segment if segment.text.isascii() else Segment(plain(segment.text), segment.style, segment.control)
            for segment in segments
        ]
