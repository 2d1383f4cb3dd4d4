"""What was passed over while reading, and how far reading has come: nothing is dropped unsaid."""

from __future__ import annotations

from collections import Counter

MAX_RECORD_BYTES = 16 * 2**20
"""A line or value of JSON or a CSV row longer than this is passed over: it would be in memory as a whole."""


class Tally:
    """Counts of one reading.

    Attributes:
        skipped: what was passed over, reason to count.
        bytes_read: bytes of files that are behind us, passed-over files included.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.bytes_read = 0

    def skip(self, reason: str, count: int = 1) -> None:
        """Count something that was passed over; the reason is a noun phrase in the singular."""
        self.skipped[reason] += count


def in_words(skipped: dict[str, int]) -> str:
    """``3 × empty document, 1 × broken JSON``; nothing for nothing."""
    return ", ".join(
        f"{count:,} × {reason}" for reason, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    )
