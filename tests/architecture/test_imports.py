"""The arrows between the parts, and what may be imported at all: read from every file, seen in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING_OF_THE_DEMO = ROOT / "engine/models/demo/train.py"  # a program that made a file, not a part
HEAVY = ("torch", "transformers", "bitsandbytes", "accelerate", "peft")
LIGHT = [
    "engine",
    "engine.backoff",
    "engine.config",
    "engine.errors",
    "engine.channel.events",
    "engine.disk.files",
    "engine.format",
    "engine.hardware",
    "engine.launch",
    "engine.machine.device",
    "engine.machine.gpu_check",
    "engine.machine.memory_watch",
    "engine.models.spec",
    "engine.models.vocabulary",
    "engine.out_of_memory",
    "engine.planner",
    "engine.profiles",
    "engine.ranks",
    "engine.report",
    "engine.run",
    "engine.runs",
    "engine.settings",
    "engine.jobs",
    "engine.old_runs",
    "engine.supervisor",
    "engine.verdict",
    "engine.walk",
    "engine.cli.arguments",
    "engine.cli.cache",
    "engine.cli.distill",
    "engine.cli.profile",
]
# Parts of the engine that a part may import; one that is not named here may import anything but the screens.
MAY_IMPORT = {
    "config": {"errors", "settings", "machine"},
    "machine": {"errors", "disk", "hardware", "places", "safe_child", "out_of_memory"},
    "channel": {"errors", "format", "machine", "phase_kinds"},
    "errors": set(),
    "disk": {"errors", "disk"},
    "out_of_memory": {"errors"},
    "settings": set(),
    "cache": {"errors", "disk", "settings", "out_of_memory"},
    "models": {"errors", "disk", "models", "hardware", "places", "settings", "out_of_memory", "machine"},
    "data": {"errors", "channel", "disk", "format", "models", "hardware", "out_of_memory"},
    "ranks": {"config", "errors"},
    "teacher": {
        "errors",
        "channel",
        "ranks",
        "models",
        "cache",
        "data",
        "disk",
        "hardware",
        "machine",
    },
    "student": {
        "errors",
        "out_of_memory",
        "ranks",
        "channel",
        "models",
        "cache",
        "data",
        "disk",
        "hardware",
        "format",
        "verdict",
        "version",
        "machine",
    },
    "verdict": set(),
    "jobs": {"config", "settings", "machine"},
    "walk": {
        *("backoff", "channel", "command", "errors", "hardware", "jobs", "out_of_memory"),
        *("phase_start", "phase_watch", "run", "run_control"),
    },
    "planner": {
        "config",
        "jobs",
        "settings",
        "errors",
        "disk",
        "format",
        "hardware",
        "runs",
        "run",
        "safe_child",
        "places",
        "models",
        "data",
        "planner",
        "version",
        "ranks",
        "cgroup",
        "out_of_memory",
        "machine",
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
    files = [path for path in files if path != TRAINING_OF_THE_DEMO]
    allowed = MAY_IMPORT[part] | {part, ""}
    for path in files:
        for name in _imports(path):
            if name.startswith("engine."):
                assert _part(name) in allowed, f"{path.relative_to(ROOT)} imports {name}"


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


def test_importing_the_light_modules_loads_no_heavy_library():
    program = f"import sys\nfor name in {LIGHT!r}: __import__(name)\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_python_process_is_started_in_safe_path_mode():
    starters = [path for part in ("engine", "tinydistill_tui") for path in (ROOT / part).rglob("*.py")]
    naming = [path for path in starters if "sys.executable" in path.read_text() and path != TRAINING_OF_THE_DEMO]
    shown = {ROOT / "tinydistill_tui/dialogs/details.py", ROOT / "engine/models/python_line.py"}  # to the user
    assert {*naming} - shown == {ROOT / "engine/safe_child.py"}, "others start python through engine.safe_child"
    for path in starters:
        assert "multiprocessing" not in _imports(path), f"{path} starts processes that know nothing of safe paths"
