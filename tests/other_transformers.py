"""Another release of transformers beside the installed one, on the same torch: for tests of what opens elsewhere.

    folder = other_transformers("4.57.3")
    answer = ask(folder, "import transformers; print(transformers.__version__)")

The first call of a session installs it with pip into a scratch folder, or into the folder that
``TINYDISTILL_OTHER_TRANSFORMERS`` names, where the next session finds it. Without a network the test is skipped.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import scratch

# Packages that each release needs in another version than the installed one.
_BESIDE = {
    "4.57.3": ("huggingface-hub==0.36.2", "tokenizers==0.22.1", "requests", "urllib3", "charset-normalizer", "certifi"),
    "5.20.0": (),
}


@functools.cache
def other_transformers(version: str) -> Path:
    """The folder to put first in the path of a process that shall use this release."""
    kept = os.environ.get("TINYDISTILL_OTHER_TRANSFORMERS")
    folder = (Path(kept) if kept else scratch()) / f"transformers-{version}"
    if not (folder / "transformers" / "__init__.py").is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        done = subprocess.run(
            [*command, f"transformers=={version}", *_BESIDE[version]], capture_output=True, text=True, timeout=400
        )
        if done.returncode:
            pytest.skip(f"transformers {version} cannot be installed here: {done.stderr.strip()[-200:]}")
    return folder


def ask(folder: Path, code: str, *words: object) -> str:
    """Run a program with that release, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=scratch(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
