"""Formatting of numbers with units for users: bytes, times, rates, counts.

Pure functions of numbers, with neither colours nor screens. ``None`` becomes a dash, so that a value that is not known
yet has the same place in a line as one that is.
"""

from __future__ import annotations

import math
import time

UNKNOWN = "–"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COUNT_UNITS = ("", " k", " M", " B", " T")


def format_bytes(value: float | None) -> str:
    """Bytes in the largest unit that keeps a digit before the point: ``2.6 GiB``, ``309 MiB``, ``512 B``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size, unit = abs(float(value)), 0
    while unit < len(_BYTE_UNITS) - 1 and size >= 999.5:
        size, unit = size / 1024, unit + 1
    digits = 0 if unit == 0 or size >= 99.95 else 1
    return f"{'-' if value < 0 else ''}{size:.{digits}f} {_BYTE_UNITS[unit]}"


def format_bytes_like(value: float | None, reference: float) -> str:
    """Only the number, in the unit that :func:`format_bytes` gives to ``reference``: for two values of one unit."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    scale, digits = bytes_scale(reference)
    return f"{value / scale:.{digits}f}"


def bytes_scale(reference: float) -> tuple[int, int]:
    """The unit (as a number of bytes) and the digits behind the point that suit ``reference``."""
    size, scale = abs(float(reference)), 1
    while scale < 1024**4 and size >= 999.5:
        size, scale = size / 1024, scale * 1024
    return scale, 0 if scale == 1 or size >= 99.95 else 1


def bytes_unit(reference: float) -> str:
    """The unit that :func:`format_bytes` gives to ``reference``."""
    return _BYTE_UNITS[round(math.log(bytes_scale(reference)[0], 1024))]


def exact_bytes(value: int) -> str:
    """Bytes as a user types a size, without any rounding: ``3GiB``, ``340MB``; in bytes where no unit divides it."""
    for unit, size in (("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("MB", 10**6)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def format_duration(seconds: float | None) -> str:
    """A time span in words, with two units at most: ``12 s``, ``41 min``, ``3 h 02``, ``4 d 5 h``."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d}"
    days, hours = divmod(round(whole / 3600), 24)
    return f"{days} d {hours} h"


def format_clock(seconds: float | None) -> str:
    """A time span as a clock shows it: ``0:42``, ``1:33:10``."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def format_count(value: float | None) -> str:
    """A number of things: whole with thousands below 100,000, else ``153 k``, ``9.4 M``, ``1.5 B``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if abs(value) < 99_999.5:
        return f"{round(value):,}"
    size, unit = float(value), 0
    while unit < len(_COUNT_UNITS) - 1 and abs(size) >= 999.5:
        size, unit = size / 1000, unit + 1
    return f"{size:.{0 if abs(size) >= 99.95 else 1}f}{_COUNT_UNITS[unit]}"


def format_rate(value: float | None, unit: str) -> str:
    """Things per second: ``26.1 k tokens/s``, ``3.2 rows/s``; slow ones by the minute or hour: ``4.1 steps/min``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    span = "s"
    if 0 < value < 0.1:
        value, span = value * 60, "min"
        if value < 0.1:
            value, span = value * 60, "h"
    if value >= 1000:
        number = f"{value / 1000:.{0 if value >= 99_950 else 1}f} k" if value < 999_500 else f"{value / 1e6:.1f} M"
    else:
        number = f"{value:.{0 if value >= 99.95 else 1}f}"
    return f"{number} {unit}/{span}"


def share_in_words(share: float) -> str:
    """A share of what a machine can do; a tiny model on a large GPU has next to none of it."""
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"


def format_percent(fraction: float | None) -> str:
    """A share of 1 as ``64 %``; never 100 % before it is whole."""
    if fraction is None or not math.isfinite(fraction):
        return UNKNOWN
    percent = fraction * 100
    if 99 < percent < 100:
        return "99 %"
    return f"{percent:.0f} %"


def format_number(value: float | None, digits: int = 3) -> str:
    """A plain number with ``digits`` behind the point; tiny and huge ones as ``1.1e-05``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value != 0 and (abs(value) < 10**-digits or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def format_when(moment: float | None, now: float) -> str:
    """A moment (Unix seconds) as short as its distance allows: ``09:58`` today, ``Apr 10`` this year, else the date."""
    if moment is None or not math.isfinite(moment):
        return UNKNOWN
    then, today = time.localtime(moment), time.localtime(now)
    if (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday):
        return time.strftime("%H:%M", then)
    if then.tm_year == today.tm_year:
        return f"{time.strftime('%b', then)} {then.tm_mday}"
    return time.strftime("%Y-%m-%d", then)
