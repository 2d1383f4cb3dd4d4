"""The programs as a user starts them, on tiny real models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tiny import tiny_texts

ROOT = Path(__file__).parents[2]
QUICK = ["--precision", "fp32", "--threads", "1", "--sequence_length", "32"]
# Names of processes and runs, a rate; and the model card, which names the run.
NOT_COMPARED = ("lock", "in-use", "used-by.jsonl", "README.md", "talk.json")


def write_texts(folder: Path, count: int = 60) -> Path:
    """A .jsonl file of short documents."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "texts.jsonl"
    lines = [json.dumps({"text": f"{number} {text}"}) for number, text in enumerate(tiny_texts(count))]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(
    *words: object,
    module: str = "engine.cli.distill",
    timeout: float = 500,
    encoding: str = "utf-8",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``tiny-distill`` (or another of the programs) to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        encoding=encoding,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        timeout=timeout,
    )


def start(*words: object, module: str = "engine.cli.distill", **environment: str) -> subprocess.Popen[str]:
    """Start one of the programs."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def content(folder: Path, names: Sequence[str] = ("cache", "student")) -> dict[str, bytes]:
    """Every file of a run that has to be the same after a restart."""
    found = {}
    for name in names:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file() and path.name not in NOT_COMPARED:
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found
