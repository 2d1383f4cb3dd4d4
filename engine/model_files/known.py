"""Which models transformers has, read from the tables in its source: importing it would take seconds.

Knows nothing of a model's files. Where the tables are not found (another release keeps them elsewhere) it says so with
None; callers then skip the check, and loading the model reports the problem.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path


def causal_lm_types() -> frozenset[str] | None:
    """The ``model_type`` of every causal language model; None if the tables are not found."""
    return _types("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


def masked_lm_types() -> frozenset[str] | None:
    """The ``model_type`` of every model that fills in blanks: it sees both sides, unless it is used as a decoder."""
    return _types("MODEL_FOR_MASKED_LM_MAPPING_NAMES")


@functools.cache
def _types(table: str) -> frozenset[str] | None:
    package = importlib.util.find_spec("transformers")  # finds the folder, imports nothing
    for root in (package.submodule_search_locations or []) if package else []:
        try:
            source = (Path(root) / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        block = re.search(rf"^{table}\b.*?^\)", source, re.MULTILINE | re.DOTALL)
        found = frozenset(re.findall(r'\(\s*"([^"]+)",', block[0])) if block else frozenset()
        if found:
            return found
    return None
