"""Assignment of documents to the hold-out, by their text alone.

The assignment does not depend on a document's place in the stream, on other documents or on the process:
the same text is always on the same side. A larger fraction only adds documents, so a model trained
without the 10 % hold-out has not seen the 5 % one either.
"""

from __future__ import annotations

import math
from hashlib import blake2b

MOST_HOLDOUT_ROWS = 512
"""More would make each evaluation slow and hardly more certain."""

FEWEST_HOLDOUT_ROWS = 16
"""With --samples, reading continues until this many rows are held out, or the data ends."""

ROUGH_BELOW_TOKENS = 2_000
"""Figures of a hold-out with fewer scored tokens are rough, and every report says so."""

_HASH_VALUES = 2**64


def wanted_holdout_rows(samples: int | None, holdout: float) -> int:
    """Most rows that are held out: the documents' share of the samples, within bounds.

    Args:
        samples: rows to train on; None for all.
        holdout: share of the documents.
    """
    if samples is None:
        return MOST_HOLDOUT_ROWS
    share = math.ceil(samples * holdout / (1 - holdout))
    return min(MOST_HOLDOUT_ROWS, max(FEWEST_HOLDOUT_ROWS, share))


def is_holdout(text: str, fraction: float) -> bool:
    """Return whether a document belongs to the hold-out.

    Args:
        text: the document's text.
        fraction: share of documents to hold out; 0 holds out none, 1 all of them.
    """
    # Integers up to 2**64 are compared with a float exactly in Python, so fraction 1 holds out everything.
    return _place(text) < fraction * _HASH_VALUES


def smallest_fraction(text: str) -> float:
    """About the smallest fraction that holds this document out: for data so few that a usual one holds out nothing."""
    fraction = (_place(text) + 1) / _HASH_VALUES
    while not is_holdout(text, fraction):  # the division may have rounded down
        fraction = math.nextafter(fraction, 1.0)
    return fraction


def _place(text: str) -> int:
    # surrogatepass: a lone surrogate from a JSON file is no reason to stop here.
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
