"""Rows of a Hugging Face dataset, streamed. Needs the ``datasets`` library, which is an extra, and the network."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from typing import Any

from engine.data.optional_package import why_not
from engine.data.parquet import without_nulls
from engine.errors import DataError, shown_value

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
_FILE_SUFFIX = re.compile(r"\.(txt|md|jsonl?|csv|parquet|gz|zip|pdf|html?|tsv)$", re.IGNORECASE)


def looks_like_dataset(data: str) -> bool:
    """Return whether ``data`` may be a dataset's id: ``name``, ``owner/name`` or ``owner/name:configuration``."""
    return bool(_ID.fullmatch(data)) and not _FILE_SUFFIX.search(data)


def require_datasets(data: str) -> None:
    """Make sure that the library is there, without importing it.

    Raises:
        DataError: it is not installed.
    """
    if not is_installed("datasets"):
        raise DataError(
            f"There is no file or folder {shown_value(data)}.",
            "To read it as a Hugging Face dataset, the datasets library is needed, which is not installed.",
            "Check the path, or install it: pip install datasets",
        )


def is_installed(library: str) -> bool:
    """Return whether a library could be imported."""
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):  # stands as None in sys.modules, or has no spec
        return library in sys.modules and sys.modules[library] is not None


def dataset_rows(data: str, split: str) -> Iterator[dict[str, Any]]:
    """Stream the rows of a dataset's split.

    Raises:
        DataError: the library is missing, or the dataset cannot be opened.
    """
    require_datasets(data)
    try:
        import datasets
    except ImportError as error:
        why, todo = why_not("datasets", error)
        raise DataError(f"{shown_value(data)} cannot be read: the datasets library {why}.", "", todo) from None

    name, _, configuration = data.partition(":")
    try:
        rows = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
        yield from ({name: without_nulls(value) for name, value in row.items()} for row in rows)
    except (OSError, ValueError, RuntimeError) as error:  # its own errors derive from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"The dataset {data} (split {split}) cannot be read.",
            reason,
            "Check the id, --data_split and the network; a configuration is named as in owner/name:configuration.",
        ) from error
