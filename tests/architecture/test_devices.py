"""Only engine/machine asks for properties of a device: nothing else names a kind, or torch's modules for one.

So another kind of device is a row of a table, and everything else runs on it as it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KIND = re.compile(r"(cuda|xpu|mps|hip|rocm)(:\d*)?")
MODULES = ("cuda", "xpu", "mps")
QUESTIONS = ("on_gpu", "_on_gpu", "is_cuda", "is_xpu", "is_mps")


def questions(source: str) -> Iterator[str]:
    """The places of a file that ask which device it is."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and KIND.fullmatch(node.value):
            yield f"{node.lineno}: {node.value!r}"
        elif isinstance(node, ast.Attribute) and node.attr in QUESTIONS:
            yield f"{node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Attribute) and node.attr in MODULES and ast.unparse(node.value) == "torch":
            yield f"{node.lineno}: torch.{node.attr}"
        elif isinstance(node, ast.Name) and node.id in QUESTIONS:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.arg | ast.keyword) and node.arg in QUESTIONS:
            yield f"{node.lineno}: {node.arg}"
        elif isinstance(node, ast.Compare) and "cpu" in ast.unparse(node) and ".type" in ast.unparse(node.left):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_only_the_machine_names_kinds_of_devices():
    found = [
        f"{path.relative_to(ROOT)}:{place}"
        for folder in ("engine", "tinydistill_tui")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ROOT / "engine/machine" not in path.parents
        for place in questions(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "if device.type == 'cuda': pass",
        "if device.type != 'cpu': pass",
        "name = f'cuda:{index}'",
        "torch.cuda.synchronize()",
        "torch.mps.empty_cache()",
        "if tensor.is_cuda: pass",
        "def sizes(*, on_gpu=False): pass",
        "sizes(on_gpu=True)",
        "on_gpu = True",
        "self._on_gpu = True",
        "settings.device.startswith('xpu')",
    ],
)
def test_the_guard_sees_every_way_of_asking(source: str):
    assert list(questions(source))
