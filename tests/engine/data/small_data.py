"""Phase 0 on tiny models, for tests of what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.data.prepare import PrepareResult, prepare
from engine.data.sources import open_source
from engine.data.tokens import Split, TokenFile
from engine.events import EventWriter
from engine.models.spec import read_spec
from engine.phase_control import PhaseControl
from tests.tiny import tiny_model, tiny_tokenizer


def run_prepare(data: Path | str, out: Path, **other: Any) -> PrepareResult:
    """Prepare with small settings; ``other`` replaces any of them. Events go beside ``out``."""
    events = EventWriter(out.parent / "events.jsonl", phase="prepare")
    try:
        arguments: dict[str, Any] = {
            "teacher": read_spec(tiny_model()),
            "student": read_spec(tiny_model(num_layers=2, seed=1)),
            "sequence_length": 32,
            "samples": None,
            "holdout": 0.2,
            "packing": True,
            "control": PhaseControl.inert(),
        }
        if "source" not in other:
            other["source"] = open_source(str(data), text_field=None, split="train")
        return prepare(**{**arguments, **other}, out=out, events=events)
    finally:
        events.close()


def texts_of(path: Path, split: Split) -> list[str]:
    """What a token file says, one document after the other."""
    with TokenFile(path) as file:
        rows = file.rows(split, range(file.num_rows(split)))
        ids = [int(token) for row, length in zip(rows.tokens, rows.lengths, strict=True) for token in row[:length]]
    text: str = tiny_tokenizer().decode(ids)
    return text.split("<|endoftext|>")[:-1]
