"""The user's word on code in a model's folder reaches every function that asks for it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORD = "trust_remote_code"


def modules() -> list[tuple[Path, ast.Module]]:
    """All modules of the product."""
    paths = sorted(path for package in ("engine", "tinydistill_tui") for path in (ROOT / package).rglob("*.py"))
    return [(path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def asks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has the parameter."""
    arguments = function.args
    return any(argument.arg == WORD for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def names_that_ask(tree: ast.Module) -> set[str]:
    """Functions with the parameter, and classes whose constructor has it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__" and asks(node):
            found.add(node.name)
        if isinstance(node, ast.ClassDef) and any(
            isinstance(part, ast.FunctionDef) and part.name == "__init__" and asks(part) for part in node.body
        ):
            found.add(node.name)
    return found


def functions(tree: ast.Module) -> set[str]:
    """Names of all functions and classes."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def called(call: ast.Call) -> str:
    """The name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def test_no_call_forgets_whether_a_models_code_is_trusted() -> None:
    trees = modules()
    defined = [(path, name) for path, tree in trees for name in functions(tree)]
    asking = {(path, name) for path, tree in trees for name in names_that_ask(tree)}
    # A private name is that of its own module; a public one may not mean two things.
    public = {name for _, name in asking if not name.startswith("_")}
    public -= {name for path, name in defined if (path, name) not in asking}
    assert {"read_spec", "load_causal_lm", "StreamedTeacher", "ResidentTeacher"} <= public
    forgotten = [
        f"{path}:{node.lineno}: {called(node)}"
        for path, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (called(node) in public or (path, called(node)) in asking)
        # `**more` and positional arguments may hold it.
        if not any(keyword.arg in (WORD, None) for keyword in node.keywords)
        if not any("trust" in ast.unparse(argument) for argument in node.args)
    ]
    assert not forgotten, "\n".join(forgotten)
