"""The text of the demo: the documentation in every Python installation.

Two sources, both read as text and never imported, because importing a module runs it: the language
reference in ``pydoc_data/topics.py``, and the docstrings of the standard library with the signatures
they belong to, as ``help()`` would show them. A paragraph that occurs in several places (topics contain
each other, modules copy each other) is kept once, so that a hold-out of documents holds nothing that
training has seen.

Knows nothing of tokens and of the hold-out. The text differs a little between Python releases.
"""

from __future__ import annotations

import ast
import os
import re
import sysconfig
from collections.abc import Iterator
from hashlib import blake2b
from inspect import cleandoc
from pathlib import Path
from typing import Any

from engine.data.document import Document
from engine.errors import DataError

MIN_CHARACTERS = 300
"""Shorter documents are left out: they would be a name and a sentence."""

# Not documentation: test suites, programs with a screen, generated tables, and what pip put there.
_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "test", "tests"}
    | {"turtledemo"}
)
# Paragraphs shorter than this ("Return True if successful.") repeat because the language does, not the text.
_REPEAT_CHARACTERS = 80

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_documents() -> Iterator[Document]:
    """Yield the interpreter's own documentation, always in the same order.

    The order is that of a hash of the names: any first part of the stream is a fair sample of the whole.

    Raises:
        DataError: the interpreter was installed without the source of its standard library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    # Longest topics first: of two topics where one contains the other, the whole one keeps its text.
    topics = sorted(_topics(library).items(), key=lambda item: (-len(item[1]), item[0]))
    named = [(f"topic {name}", text) for name, text in topics]
    for path in _sources(library):
        named.extend(_documents_of_module(path, library))
    seen: set[str] = set()
    documents = [Document(name, text) for name, text in _without_repeats(named, seen) if len(text) >= MIN_CHARACTERS]
    if not documents:
        raise DataError(
            f"This Python installation has no documentation for the demo:  {library} holds no readable sources.",
            "The demo's text is the documentation that comes with the interpreter.",
            "Use a full Python installation, or give your own text with --data.",
        )
    yield from sorted(documents, key=lambda document: blake2b(document.name.encode(), digest_size=8).digest())


def _topics(library: Path) -> dict[str, str]:
    path = library / "pydoc_data" / "topics.py"
    tree = _parse(path) if path.is_file() else None
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            value: dict[str, str] = ast.literal_eval(node.value)
            return {name: text.strip() for name, text in value.items()}
    return {}


def _sources(library: Path) -> list[Path]:
    found: list[Path] = []
    # os.walk and not rglob: site-packages, which may hold 100,000 files, is not entered at all.
    for folder, subfolders, files in os.walk(library):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found.extend(Path(folder, name) for name in files if name.endswith(".py") and not name.startswith("test_"))
    return sorted(found)


def _parse(path: Path) -> ast.Module | None:
    # The library has a few files that are not UTF-8 or not of this Python version; they say nothing we miss.
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return None


def _documents_of_module(path: Path, library: Path) -> Iterator[tuple[str, str]]:
    """One document for the module, its functions and its small classes; one for each larger class."""
    tree = _parse(path)
    if tree is None:
        return
    parts = path.relative_to(library).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    paragraphs = [f"Module {module}", _docstring(tree)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            described = list(_described(node, ""))
            text = "\n\n".join(described)
            if len(text) >= MIN_CHARACTERS:
                yield f"class {module}.{node.name}", f"Module {module}\n\n{text}"
            else:
                paragraphs.extend(described)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            paragraphs.extend(_described(node, ""))
    yield f"module {module}", "\n\n".join(filter(None, paragraphs))


def _described(node: _Definition, prefix: str) -> Iterator[str]:
    """The signature and docstring of a definition and, for a class, of its methods and inner classes."""
    name = f"{prefix}{node.name}"
    docstring = _docstring(node)
    if docstring:
        yield f"{_signature(node, name)}\n{docstring}"
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, _Definition):
                yield from _described(inner, f"{name}.")


def _signature(node: _Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{word} {name}({ast.unparse(node.args)})"


def _docstring(node: Any) -> str:
    text = ast.get_docstring(node, clean=False)
    return cleandoc(text).strip() if text else ""


def _without_repeats(named: list[tuple[str, str]], seen: set[str]) -> Iterator[tuple[str, str]]:
    for name, text in named:
        kept = []
        for paragraph in re.split(r"\n\s*\n", text):
            # Compared without layout: the same paragraph stands at several depths of indentation.
            key = " ".join(paragraph.split())
            if len(key) >= _REPEAT_CHARACTERS:
                if key in seen:
                    continue
                seen.add(key)
            kept.append(paragraph.rstrip())
        yield name, "\n\n".join(kept).strip()
