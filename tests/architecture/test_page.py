"""docs/architecture.md tells the truth: the files and functions that it names exist, and its walks never turn back."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`((?:\w+/)+\w+\.py)(?:::([\w.]+))?`")
WALKS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", PAGE.split("## Packages")[0] + "## ", re.MULTILINE | re.DOTALL))
FEATURES = re.findall(r"^\| (.+?) \| (.*`.*) \| (\d+) \|$", PAGE, re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Names that a file defines: functions, classes, constants, and what is in its classes, behind a dot."""

    def names(body: list[ast.stmt], before: str = "") -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield before + node.name
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{before}{node.name}.")
            if isinstance(node, ast.Assign):
                yield from (before + target.id for target in node.targets if isinstance(target, ast.Name))
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield before + node.target.id

    return set(names(ast.parse(path.read_text(encoding="utf-8")).body))


def wrong(text: str) -> list[str]:
    """Files of a text that do not exist, and names that their files do not define."""
    found = []
    for file, name in NAMED.findall(text):
        path = ROOT / file
        if not path.is_file():
            found.append(file)
        elif name and name not in defined(path):
            found.append(f"{file}::{name}")
    return found


def turns_back(walk: str) -> list[str]:
    """Files that a walk enters twice."""
    return [file for file, times in Counter(file for file, _ in NAMED.findall(walk)).items() if times > 1]


def unconnected(walk: str) -> list[str]:
    """Files of a walk that neither name an earlier one of it nor are named by one: by an import, or to start it."""
    files = [file for file, _ in NAMED.findall(walk)]
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in files}

    def names(one: str, other: str) -> bool:
        package, _, name = other.removesuffix(".py").replace("/", ".").rpartition(".")
        return bool(re.search(rf"\b{package}\.{name}\b|from {package} import [^\n]*\b{name}\b", texts[one]))

    return [
        file
        for place, file in enumerate(files)
        if place and not any(names(earlier, file) or names(file, earlier) for earlier in files[:place])
    ]


def test_every_file_and_function_of_the_page_exists():
    assert len(NAMED.findall(PAGE)) > 100
    assert not wrong(PAGE)


def test_there_are_five_walks():
    assert len(WALKS) == 5
    assert all(len(NAMED.findall(walk)) >= 8 for walk in WALKS.values())


@pytest.mark.parametrize("title", WALKS)
def test_no_walk_enters_a_file_twice(title: str):
    assert not turns_back(WALKS[title])


@pytest.mark.parametrize("title", WALKS)
def test_each_file_of_a_walk_has_to_do_with_an_earlier_one(title: str):
    assert not unconnected(WALKS[title])


@pytest.mark.parametrize(("feature", "files", "number"), FEATURES)
def test_the_files_of_a_feature_are_counted(feature: str, files: str, number: str):
    assert len(set(NAMED.findall(files))) == len(NAMED.findall(files)) == int(number)


def test_there_are_six_features():
    assert len(FEATURES) == 6


def test_the_packages_of_the_page_are_those_that_there_are():
    rows = PAGE.split("## Packages")[1].split("## Seams")[0]
    parts = {
        str(path.parent.relative_to(ROOT)) for package in ("engine", "tinydistill_tui") for path in
        (ROOT / package).rglob("__init__.py")
    }  # fmt: skip
    missing = {part for part in parts - {"engine/model_files/demo"} if f"{part.rpartition('/')[2]}/`" not in rows}
    assert not missing


@pytest.mark.parametrize(
    "text",
    [
        "`engine/gone.py`",
        "`engine/run/folder.py::Run.nowhere`",
        "`engine/run/folder.py::nowhere`",
        "`engine/run/folder.py::Walk`",
    ],
)
def test_the_guard_sees_what_does_not_exist(text: str):
    assert wrong(text)


def test_the_guard_sees_a_walk_that_turns_back_and_one_that_jumps():
    assert turns_back("`engine/run/folder.py::Run` then `engine/phases/process.py` then `engine/run/folder.py`") == [
        "engine/run/folder.py"
    ]
    assert unconnected("`engine/run/folder.py::Run` then `engine/student/loss.py`") == ["engine/student/loss.py"]


def test_every_path_that_code_and_documents_name_exists() -> None:
    """A file that moves takes its name along. Names with "gone" or "notes" are of files that tests make up."""
    named = re.compile(r"(?<![\w/])((?:engine|tests|tinydistill_tui|docs|screenshots)/[\w/]+\.(?:py|md|tcss|toml))\b")
    folders = ("engine", "tinydistill_tui", "tests", "screenshots", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*files, *ROOT.glob("*.md")]
        for name in named.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists() and not re.search("gone|notes", name)
    }
    assert not missing
