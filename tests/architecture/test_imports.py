"""The arrows between the parts, and what may be imported at all: read from every file, seen in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING_OF_THE_DEMO = ROOT / "engine/model_files/demo/train.py"  # a program that made a file, not a part
HEAVY = ("torch", "transformers", "bitsandbytes", "accelerate", "peft")
LIGHT = [
    "engine",
    "engine.run.backoff",
    "engine.settings.config",
    "engine.errors",
    "engine.channel.events",
    "engine.disk.files",
    "engine.format",
    "engine.machine.hardware",
    "engine.run.launch",
    "engine.machine.device",
    "engine.machine.gpu_check",
    "engine.machine.memory_watch",
    "engine.model_files.spec",
    "engine.model_files.vocabulary",
    "engine.machine.out_of_memory",
    "engine.planner",
    "engine.model_files.hub",
    "engine.model_files.weight_files",
    "engine.settings.profiles",
    "engine.ranks",
    "engine.run.report",
    "engine.run.folder",
    "engine.disk.runs",
    "engine.settings.describe",
    "engine.jobs",
    "engine.run.old_runs",
    "engine.run.supervisor",
    "engine.student.verdict",
    "engine.run.walk",
    "engine.cli.arguments",
    "engine.cli.cache",
    "engine.cli.distill",
    "engine.cli.profile",
]
# Parts of the engine that a part may import, from the lowest one up. The commands (cli) may import all of them.
_LOW = {"errors", "disk", "machine"}
_MODELS = {"model_files", "models"}
MAY_IMPORT = {
    "errors": set(),
    "format": set(),
    "version": set(),
    "phase_kinds": set(),
    "disk": {"errors"},
    "machine": {"errors", "disk"},
    "settings": {*_LOW, "format"},
    "ranks": {"errors", "settings"},
    "jobs": {"machine", "settings"},
    "channel": {"errors", "format", "machine", "phase_kinds"},
    "cache": _LOW,
    "model_files": {"errors", "disk"},
    "models": {*_LOW, "model_files"},
    "data": {*_LOW, "format", "channel", *_MODELS},
    "teacher": {"errors", "ranks", "machine", "channel", "cache", "data", *_MODELS},
    "student": {*_LOW, "ranks", "channel", "cache", "data", *_MODELS},
    "export": {"errors", "disk", "data", *_MODELS},
    "talk": {*_LOW, "format", *_MODELS},
    "planner": {*_LOW, "format", "jobs", "ranks", "settings", "data", "model_files"},
    "run": {
        *(*_LOW, "format", "jobs", "phase_kinds", "ranks", "version", "settings"),
        *("cache", "channel", "data", *_MODELS, "planner", "student", "talk", "teacher"),
    },
    "phases": {
        *(*_LOW, "jobs", "phase_kinds", "ranks", "version", "settings"),
        *("cache", "channel", "data", *_MODELS, "planner", "run", "student", "talk", "teacher"),
    },
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_engine_never_imports_the_screens():
    for path in (ROOT / "engine").rglob("*.py"):
        assert not any(name.startswith("tinydistill_tui") for name in _imports(path)), path


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_a_part_imports_only_what_lies_below_it(part):
    folder = ROOT / "engine" / part
    files = list(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files
    files = [path for path in files if path != TRAINING_OF_THE_DEMO]
    allowed = MAY_IMPORT[part] | {part, ""}
    for path in files:
        for name in _imports(path):
            if name.startswith("engine."):
                assert _part(name) in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_no_two_parts_of_the_engine_need_each_other():
    """The table of allowed arrows has no circle, so neither have the arrows; and it names every part."""
    TopologicalSorter(MAY_IMPORT).prepare()
    parts = {
        path.stem for path in (ROOT / "engine").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__", "__main__", "cli"} == MAY_IMPORT.keys()


# Folders of the wizard that a folder may import.
WIZARD = {
    "view": set(),
    "work": {"view"},
    "widgets": {"view"},
    "terminal": {"view", "widgets"},
    "dialogs": {"work"},
    "screens": {"dialogs", "terminal", "view", "widgets", "work"},
}


@pytest.mark.parametrize("folder", WIZARD)
def test_a_folder_of_the_wizard_imports_only_what_lies_below_it(folder):
    for path in (ROOT / "tinydistill_tui" / folder).rglob("*.py"):
        found = {_part(name) for name in _imports(path) if name.startswith("tinydistill_tui.")}
        assert found & WIZARD.keys() <= WIZARD[folder] | {folder}, path


def test_the_screens_import_no_arrays_and_no_tensors():
    for path in (ROOT / "tinydistill_tui").rglob("*.py"):
        heavy = {name.split(".")[0] for name in _imports(path)} & {*HEAVY, "h5py", "numpy"}
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_names_no_heavy_library_not_even_lazily(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    assert not {name.split(".")[0] for name in _imports(path)} & set(HEAVY)


def test_no_heavy_library_is_needed_to_describe_or_read_a_model():
    for path in (ROOT / "engine/model_files").rglob("*.py"):
        if path != TRAINING_OF_THE_DEMO:
            assert not {name.split(".")[0] for name in _imports(path)} & set(HEAVY), path


def test_importing_the_light_modules_loads_no_heavy_library():
    program = f"import sys\nfor name in {LIGHT!r}: __import__(name)\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_python_process_is_started_in_safe_path_mode():
    starters = [path for part in ("engine", "tinydistill_tui") for path in (ROOT / part).rglob("*.py")]
    naming = [path for path in starters if "sys.executable" in path.read_text() and path != TRAINING_OF_THE_DEMO]
    shown = {ROOT / "tinydistill_tui/dialogs/details.py", ROOT / "engine/model_files/python_line.py"}  # to the user
    assert {*naming} - shown == {ROOT / "engine/machine/safe_child.py"}, "others start python through it"
    for path in starters:
        assert "multiprocessing" not in _imports(path), f"{path} starts processes that know nothing of safe paths"
