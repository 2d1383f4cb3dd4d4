"""Guards of the structure: no circle of imports, no class name twice, types for importers, one place for advice, and
one for the folders of runs.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from textual.app import App
from textual.command import Provider
from textual.message import Message
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.widgets import DirectoryTree, Static

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "tinydistill_tui")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _modules(package: str) -> dict[str, Path]:
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports: at its top, inside of functions and for types alike."""
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else node.module for name in inner}
    return names & modules.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_imports(package):
    modules = _modules(package)
    arrows = {name: _imported(path, modules) - {name} for name, path in modules.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_screens_do_not_know_each_other():
    modules = _modules("tinydistill_tui")
    parts = {f"tinydistill_tui.screens.{part}" for part in ("base", "step", "planning")}  # what screens are made from
    screens = {name for name in modules if name.startswith("tinydistill_tui.screens.")} - parts
    known_by = {name: _imported(path, modules) & screens - {name} for name, path in modules.items()}
    assert {name for name, known in known_by.items() if known} == {"tinydistill_tui.routes"}


@pytest.mark.parametrize("folder", ["screens", "dialogs", "widgets"])
def test_nothing_of_ours_is_imported_inside_of_a_function_of_a_screen(folder):
    modules = _modules("tinydistill_tui")
    for path in (ROOT / "tinydistill_tui" / folder).rglob("*.py"):
        tree = _tree(path)
        inner = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        late = {
            name
            for function in inner
            for node in ast.walk(function)
            if isinstance(node, ast.ImportFrom) and node.module
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        }
        assert not late & modules.keys(), f"{path.relative_to(ROOT)} imports {late} late"


def test_the_name_of_a_public_class_is_there_once():
    places = defaultdict(list)
    for package in PACKAGES:
        for name, path in _modules(package).items():
            for node in _tree(path).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_has_types(package):
    assert (ROOT / package / "py.typed").is_file()


def _asks_the_settings(path: Path) -> bool:
    tree = _tree(path)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return "RunConfig" in imported or any(
        isinstance(node, ast.Attribute) and node.attr == "settings" and ast.unparse(node.value).endswith("run")
        for node in ast.walk(tree)
    )


def test_a_phase_asks_its_job_and_not_the_settings_of_the_run():
    found = {path.name for path in (ROOT / "engine/phases").glob("*.py") if _asks_the_settings(path)}
    assert found == {"student_result.py"}, "the student's card alone tells all settings"


def _guesses(path: Path) -> list[str]:
    """Values of a job that are guessed or asserted, as if the planner might have left them open."""
    found = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            *values, last = node.values
            if any("job." in ast.unparse(value) for value in values) and isinstance(last, ast.Constant | ast.BinOp):
                found.append(ast.unparse(node))
        if isinstance(node, ast.Assert) and "job." in (asked := ast.unparse(node.test)) and "not None" in asked:
            found.append(asked)
    return found


def test_no_value_of_a_job_is_guessed():
    paths = [path for folder in ("phases", "cli", "run", "") for path in (ROOT / "engine" / folder).glob("*.py")]
    assert {path.name: said for path in paths if (said := _guesses(path))} == {}


@pytest.mark.parametrize(
    "name",
    ["jobs", *(f"run/{name}" for name in ("supervisor", "walk", "phase_start", "phase_watch", "control", "backoff"))],
)
def test_the_supervisor_is_read_in_short_functions(name: str):
    for node in ast.walk(_tree(ROOT / f"engine/{name}.py")):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    ("words", "home"),
    [
        ("tiny-distill --resume --output_dir", "engine/settings/command.py"),
        ("Completed work is kept.", "engine/settings/command.py"),
    ],
)
def test_advice_to_continue_a_run_is_written_in_one_place(words: str, home: str):
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "engine").rglob("*.py") if words in path.read_text()}
    assert found == {home}, "others call engine.settings.command, which quotes the path for a shell"


MOST_PARAMETERS = 8
"""May only fall: a call that hands on more says what belongs together by a value with a name."""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_takes_a_tray(package: str):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                number = sum(argument.arg not in ("self", "cls") for argument in arguments)
                assert number <= MOST_PARAMETERS, f"{path.relative_to(ROOT)}: {node.name} has {number} parameters"


CALLED_BY_LIBRARIES = {"on_broken_pipe", "readable"}
"""Methods of a console (rich) and of a stream (io) that these call by name."""


def _defined(tree: ast.Module) -> set[str]:
    """Names of functions, methods, classes and constants; those that a decorator hands to a library are used by it."""
    found = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not any("validator" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("__")}


def _used(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # as in __all__ and in tables of names
    return found


def unused(trees: dict[str, ast.Module], users: list[ast.Module]) -> list[str]:
    """Names that some modules define and none of the users names."""
    used = set().union(*(_used(tree) for tree in users))
    return [f"{path}: {name}" for path, tree in trees.items() for name in sorted(_defined(tree) - used)]


def _trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): _tree(path)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def test_nothing_is_defined_in_the_engine_that_no_code_uses():
    trees = _trees()
    engine = {path: tree for path, tree in trees.items() if path.startswith("engine/")}
    found = {line.rpartition(" ")[2] for line in unused(engine, list(trees.values()))}
    assert found == CALLED_BY_LIBRARIES


def not_imported(trees: dict[str, ast.Module]) -> list[str]:
    """Names at the top of a module that it does not use itself and no other one imports, whatever shares the name."""
    used: set[tuple[str, str]] = set()
    texts = {"main"}  # pyproject.toml names the programs
    for module, tree in trees.items():
        alias: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                used |= {(node.module, each.name) for each in node.names}
                alias |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
            elif module == "engine.phase_kinds" and isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)  # the function that does a phase
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (place := alias.get(ast.unparse(node.value))):
                used.add((place, node.attr))
    found = []
    for module, tree in trees.items():
        own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        names = _defined(ast.Module([node for node in tree.body if not isinstance(node, ast.ClassDef)], []))
        names |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        found += [f"{module}: {name}" for name in sorted(names - own - texts) if (module, name) not in used]
    return found


def test_nothing_is_defined_that_only_tests_import():
    modules = {name: _tree(path) for package in PACKAGES for name, path in _modules(package).items()}
    assert not_imported(modules) == []


def test_the_guard_sees_what_only_shares_its_name_with_something_used():
    modules = {"a": ast.parse("def lost(): pass"), "b": ast.parse("def f(): return g.lost, 'lost'\nprint(f)")}
    assert not_imported(modules) == ["a: lost"]


HANDLERS = re.compile(r"(action|on|watch|_watch|validate|check)_(\w+)")
"""Methods that Textual calls by a name made from that of an action, a message or an attribute."""
CALLED_BY_TEXTUAL = {
    name for kind in (App, DirectoryTree, Message, ModalScreen, Provider, ScrollView, Static) for name in dir(kind)
}


def test_nothing_public_is_defined_in_the_wizard_that_no_code_uses():
    trees = _trees()
    wizard = {path: tree for path, tree in trees.items() if path.startswith("tinydistill_tui/")}
    found = {line.rpartition(" ")[2] for line in unused(wizard, list(trees.values()))}
    assert {
        name for name in found - CALLED_BY_TEXTUAL if not name.startswith("_") and not HANDLERS.match(name)
    } == set()


def test_each_action_of_the_wizard_is_named_somewhere():
    """By a binding, a button or a call: ``"level('info')"`` names ``action_level``."""
    wizard = [tree for path, tree in _trees().items() if path.startswith("tinydistill_tui/")]
    used = {re.split(r"\W", name.rpartition(".")[2], maxsplit=1)[0] for tree in wizard for name in _used(tree)}
    actions = {name for tree in wizard for name in _defined(tree) if name.startswith("action_")} - CALLED_BY_TEXTUAL
    assert {name for name in actions if name not in used and name.removeprefix("action_") not in used} == set()


@pytest.mark.parametrize("source", ["def lost(): pass", "class A:\n    def lost(self): pass", "LOST = 2"])
def test_the_guard_sees_what_no_code_uses(source: str):
    tree = ast.parse(f"{source}\nprint(A)")
    assert [line.lower() for line in unused({"a.py": tree}, [tree])] == ["a.py: lost"]


def _makes_parents(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    values = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    if name == "make_folder":
        return "parents" not in values or values["parents"] is True
    return name == "makedirs" or (name == "mkdir" and values.get("parents") is True)


def test_what_works_in_a_run_does_not_make_its_folder_again():
    """The folder of a run may be deleted while it works; a folder in it is made without its parents."""
    packages = ("run", "phases", "channel", "cache", "data", "teacher", "student", "models")
    found = {
        f"{path.relative_to(ROOT)}: {ast.unparse(call)}"
        for package in packages
        for path in (ROOT / "engine" / package).rglob("*.py")
        for call in ast.walk(_tree(path))
        if isinstance(call, ast.Call) and _makes_parents(call)
    }
    assert found == {"engine/run/folder.py: make_folder(path)"}, "only Run.create makes it"
