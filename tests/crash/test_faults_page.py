"""Each test that docs/faults.md names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_the_page_of_faults_names_exists():
    rows = [
        line
        for line in (ROOT / "docs" / "faults.md").read_text().splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    named = [NAMED.search(row) for row in rows if not row.endswith("| test |")]
    assert len(named) > 30
    assert None not in named, "a line names no test"
    for match in filter(None, named):
        tree = ast.parse((ROOT / match[1]).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert match[2] in functions, f"{match[1]} has no {match[2]}"


def test_the_readme_leads_to_it():
    assert "(docs/faults.md)" in (ROOT / "README.md").read_text()
