"""JSON files with a checksum of their content as the last entry: damage is noticed before it is believed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SEAL = "checksum"
"""The entry's name."""


def sealed(values: dict[str, Any]) -> str:
    """The text of a JSON file with a checksum of the rest as its last entry."""
    plain = json.loads(json.dumps({**values, SEAL: None}, default=str))
    del plain[SEAL]
    return json.dumps({**plain, SEAL: _checksum(plain)}, indent=1, ensure_ascii=False) + "\n"


def unsealed(found: object) -> dict[str, Any] | None:
    """Return the sealed content; None if the checksum differs. A file without one (edited by hand) is accepted."""
    if not isinstance(found, dict):
        return None
    seal = found.pop(SEAL, None)
    return found if seal in (None, _checksum(found)) else None


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
