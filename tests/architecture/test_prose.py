"""Phrases that the plain English of CONTRIBUTING.md avoids, counted in packages, tests and documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).name
PHRASES = {
    "a sentence that begins with What, Who, Whoever, ...": re.compile(
        r'(?:"""|# |\. )(?:What|Who|Whoever|Whatever|Nobody|Somebody) [a-z]'
    ),
    "a line of a docstring that begins so": re.compile(r"^\s*(?:What|Who|Whoever|Whatever|Nobody|Somebody) [a-z]"),
    "whoever, nobody, somebody, anybody, vouch, for ears, This cannot be": re.compile(
        r"whoever|\bnobody\b(?![-/])|\bsomebody\b|\banybody\b|vouch|for ears|This cannot be", re.IGNORECASE
    ),
    "goes on, anew, mended: continues, again, repaired": re.compile(
        r"\b(?:goes|go|gone|went) on\b|\banew\b|\bmend(?:s|ed)?\b", re.IGNORECASE
    ),
}
CEILINGS = dict.fromkeys(PHRASES, 0)
"""Numbers of lines with such a phrase; they may only fall."""


def found(phrase: str) -> list[str]:
    folders = ("engine", "tinydistill_tui", "tests", "screenshots")
    code = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if path.name != HERE]
    files = [*code, ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if PHRASES[phrase].search(line)
    ]


@pytest.mark.parametrize("phrase", PHRASES)
def test_code_and_documentation_avoid_the_phrase(phrase: str) -> None:
    lines = found(phrase)
    assert len(lines) <= CEILINGS[phrase], "write these plainly (CONTRIBUTING.md):\n" + "\n".join(lines)
