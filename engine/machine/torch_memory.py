"""Memory that importing torch takes in this installation, against the build that the planner's figures were fitted to.

A build for CUDA loads CUDA's libraries with torch, also where no GPU is used: 132 MiB more in each process (2.13 for
CUDA 13.0). The probe measures it; until then the build's own words decide. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path

from engine.machine.kept_fact import KeptFact

MIB = 2**20

# Python 3.11 with torch 2.13's build for the CPU, on Linux.
FITTED_BYTES = 146 * MIB
_WITH_A_GPU = 132 * MIB
# Two imports differ by less.
_STEP = 4 * MIB

_MEASURED = KeptFact("import_bytes")


def more_bytes() -> int:
    """Memory that a process with torch takes beyond the figures of the planner; below 0 where it takes less."""
    found = _MEASURED.read(_name())
    if isinstance(found, int):
        return round((found - FITTED_BYTES) / _STEP) * _STEP
    return _WITH_A_GPU if _is_for_a_gpu() else 0


def keep(import_bytes: int) -> None:
    """Keep a measurement of this installation.

    Args:
        import_bytes: anonymous memory of a process right after ``import torch``.
    """
    _MEASURED.keep(_name(), import_bytes)


def _name() -> str:
    return f"torch-{_digest(_version_file())}"


@cache
def _digest(version: str) -> str:
    """A name for an installation of torch."""
    parts = [version, sys.version_info[:2]]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


def _is_for_a_gpu() -> bool:
    return re.search(r"^(cuda|hip|xpu)\b[^=\n]*= *['\"]", _version_file(), re.MULTILINE) is not None


@cache
def _version_file() -> str:
    """Torch's ``version.py``: version, source, and what the build is for. Empty when there is none."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        found = importlib.util.find_spec("torch")
        if found is not None and found.origin is not None:
            return (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    return ""
