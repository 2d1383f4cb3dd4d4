"""The small teacher that comes with the package, for ``--demo``.

A folder that ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` read. How it was
made is in ``train.py`` beside this file, and what came out in its ``README.md``. Imports neither.
"""

from __future__ import annotations

from pathlib import Path

DEMO_TEACHER: Path = Path(__file__).resolve().parent
"""Folder of the demo's teacher: weights, config and tokenizer."""

__all__ = ["DEMO_TEACHER"]
