from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.data import python_docs
from engine.data.document import Document
from engine.data.python_docs import MIN_CHARACTERS, python_documents
from engine.errors import DataError


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(python_documents())


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty standard library that python_documents() reads instead of the interpreter's."""
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def write(library: Path, name: str, source: str) -> None:
    path = library / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def test_there_is_enough_text_for_a_demo(documents: list[Document]) -> None:
    assert len(documents) > 500
    assert sum(len(document.text) for document in documents) > 1_500_000


def test_documents_are_of_useful_length_and_uniquely_named(documents: list[Document]) -> None:
    assert min(len(document.text) for document in documents) >= MIN_CHARACTERS
    assert len({document.name for document in documents}) == len(documents)


def test_language_reference_and_library_are_both_there(documents: list[Document]) -> None:
    names = {document.name for document in documents}
    assert {"topic with", "module textwrap", "class json.decoder.JSONDecoder"} <= names


@pytest.mark.slow
def test_order_is_the_same_each_time(documents: list[Document]) -> None:
    assert list(python_documents()) == documents


def test_first_part_of_the_stream_has_both_kinds_of_text(documents: list[Document]) -> None:
    kinds = {document.name.split()[0] for document in documents[:50]}
    assert kinds == {"topic", "module", "class"}


def test_no_long_paragraph_comes_twice(documents: list[Document]) -> None:
    seen: dict[str, str] = {}
    for document in documents:
        for paragraph in document.text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= 80:
                assert words not in seen, f"{document.name} repeats {seen[words]}"
                seen[words] = document.name


def test_tests_and_installed_packages_are_not_read(documents: list[Document]) -> None:
    modules = {
        document.name.split()[1].split(".")[0] for document in documents if not document.name.startswith("topic")
    }
    assert not modules & {"test", "idlelib", "lib2to3", "turtledemo", "torch", "numpy", "pip"}


def test_no_module_of_the_library_is_imported() -> None:
    # antigravity opens a web browser when it is imported, tkinter needs a display library.
    code = (
        "import sys; from engine.data.python_docs import python_documents; list(python_documents());"
        "print(sorted({'antigravity', 'this', 'tkinter', 'turtle', 'pydoc_data'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_signatures_stand_before_what_they_do(library: Path) -> None:
    long = "Tell a long story. " * 20
    write(
        library,
        "tale.py",
        f'class Teller(object):\n    """{long}"""\n    def tell(self, *, loud=False):\n        "Say it."\n',
    )
    (document,) = python_documents()
    assert document.name == "class tale.Teller"
    assert document.text.startswith("Module tale\n\nclass Teller(object)\nTell a long story.")
    assert document.text.endswith("def Teller.tell(self, *, loud=False)\nSay it.")


def test_small_classes_and_functions_are_told_with_their_module(library: Path) -> None:
    write(
        library,
        "pkg/__init__.py",
        f'"""{"About. " * 60}"""\nclass Small:\n    "Tiny."\nasync def go(x):\n    "Goes."\n',
    )
    (document,) = python_documents()
    assert document.name == "module pkg"
    assert document.text.endswith("class Small\nTiny.\n\nasync def go(x)\nGoes.")


def test_contained_topic_is_left_to_the_one_that_contains_it(library: Path) -> None:
    paragraph = "A paragraph of the reference that two topics have in common. " * 8
    other = "The rest of the longer topic. " * 8
    write(
        library, "pydoc_data/topics.py", f"topics = {{'a': {paragraph!r}, 'b': {paragraph + chr(10) * 2 + other!r}}}\n"
    )
    (document,) = python_documents()
    assert document.name == "topic b"
    assert document.text == f"{paragraph}\n\n{other}".replace(" \n", "\n").strip()


def test_unreadable_source_is_passed_over(library: Path) -> None:
    write(library, "broken.py", "def (:\n")
    (library / "latin.py").write_bytes(b'"""caf\xe9"""\n')
    write(library, "good.py", f'"""{"Fine. " * 60}"""\n')
    assert [document.name for document in python_documents()] == ["module good"]


def test_interpreter_without_sources_is_named_in_the_error(library: Path) -> None:
    with pytest.raises(DataError, match="no documentation") as caught:
        list(python_documents())
    assert str(library) in caught.value.what
    assert "--data" in caught.value.todo
