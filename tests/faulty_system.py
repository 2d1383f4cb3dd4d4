"""A system that refuses what ours grants: a C library that is made once a session and preloaded into the programs."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import scratch


@functools.cache
def _library() -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = scratch() / "faulty_system.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    return library


def faulty(**refusals: object) -> dict[str, str]:
    """The environment of a program for which the system refuses: ``faulty(FLOCK=errno.ENOLCK)``.

    Names are those in ``faulty_system.c`` without ``FAULTY_``. The test is skipped where nothing compiles C.
    """
    library = _library()
    if library is None:
        pytest.skip("no C compiler")
    return {"LD_PRELOAD": str(library), **{f"FAULTY_{name}": str(value) for name, value in refusals.items()}}
