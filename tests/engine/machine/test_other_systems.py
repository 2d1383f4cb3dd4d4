"""Systems that are not Linux: what the kernel's files would tell is asked elsewhere, or left out with a sentence.

Each case is a process of its own that is told another ``sys.platform``, and from which /proc and /sys are hidden.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Libraries are imported before the system changes its name: they are not what is tried. psutil reads /proc by itself.
BEFORE = """
import builtins, io, os, pathlib, signal, sys
import h5py, numpy, platformdirs, psutil, pydantic, rich.console, textual.app, tokenizers, textual.widgets
import pynvml, huggingface_hub, jinja2, tomllib, multiprocessing.util, sysconfig, zoneinfo
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
sysconfig.get_config_vars()

def by_psutil():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("psutil"):
            return True
        frame = frame.f_back
    return False

def hidden(own):
    def wrapper(path, *arguments, **keywords):
        if str(path).startswith(("/proc", "/sys/")) and not by_psutil():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return own(path, *arguments, **keywords)
    return wrapper

for owner, name in [(builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (os, "scandir"), (os, "stat"),
                    (os.path, "exists")]:
    setattr(owner, name, hidden(getattr(owner, name)) if name != "exists" else
            (lambda own: lambda path: not str(path).startswith(("/proc", "/sys/")) and own(path))(getattr(owner, name)))
for name in ("sched_getaffinity", "posix_fadvise", "memfd_create"):
    if hasattr(os, name):
        delattr(os, name)
"""
MAC = BEFORE + "\nsys.platform = 'darwin'\n"
WINDOWS = (
    BEFORE
    + """
for name in ("fcntl", "resource", "termios", "tty", "pwd", "grp"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGTSTP", "SIGCONT", "SIGSTOP"):
    delattr(signal, name)
for name in ("fork", "setsid", "getuid", "geteuid", "killpg", "pread", "pwrite", "preadv", "pwritev", "O_CLOEXEC",
             "sysconf", "getpgid", "statvfs"):
    delattr(os, name)
sys.platform = 'win32'
"""
)


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment(folder), timeout=120
    )


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }


PROGRAMS = [
    "engine.cli.distill",
    "engine.cli.cache",
    "engine.cli.profile",
    "engine.cli.export",
    "engine.cli.chat",
    "tinydistill_tui.cli",
]


@pytest.mark.parametrize("system", [MAC, WINDOWS], ids=["macOS", "Windows"])
def test_help_works(tmp_path: Path, system: str) -> None:
    asked = f"""
import importlib
for name in {PROGRAMS!r}:
    try:
        code = importlib.import_module(name).main(["--help"])
    except SystemExit as ended:
        code = ended.code
    assert not code, name
"""
    done = run(system + asked, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().count("usage: ") >= len(PROGRAMS)


def test_each_program_says_that_windows_cannot(tmp_path: Path) -> None:
    asked = f"""
import importlib
for name in {PROGRAMS!r}:
    words = ["--demo", "--output_dir", "run"] if "distill" in name or "tui" in name else ["verify", "run"]
    assert importlib.import_module(name).main(words) == 2, name
"""
    done = run(WINDOWS + asked, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("needs Linux, macOS or WSL; this is Windows") == len(PROGRAMS)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_plan_is_made_on_macos(tmp_path: Path) -> None:
    words = ["--demo", "--dry_run", "--output_dir", str(tmp_path / "run")]
    done = run(f"{MAC}\nfrom engine.cli.distill import main\nsys.exit(main({words!r}))", tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "memory_budget" in done.stdout
    assert "Traceback" not in done.stderr


def test_memory_is_told_by_psutil_where_there_is_no_proc(tmp_path: Path) -> None:
    asked = """
import subprocess
from engine.machine import hardware
from engine.machine import process_memory
machine = hardware.detect()
assert 2**28 < machine.available_bytes <= machine.ram_bytes, machine
assert machine.cores >= 1 and machine.cpu_name and machine.cgroup_limit_bytes is None, machine
assert hardware.memory_note() == ""
assert process_memory.memory_of_tree(os.getpid()) > 2**22
assert hardware.killed_for_memory() is None
assert hardware.boot_id()
"""
    done = run(MAC + asked, tmp_path)
    assert done.returncode == 0, done.stderr


def test_all_that_a_process_has_counts_where_macos_tells_no_more(tmp_path: Path) -> None:
    asked = """
from engine.machine import process_memory
def denied(process):
    raise psutil.AccessDenied(process.pid)
psutil.Process.memory_full_info = denied
assert process_memory.memory_of_tree(os.getpid()) > 2**22
"""
    done = run(MAC + asked, tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_psutil_half_of_the_memory_is_assumed_and_told(tmp_path: Path) -> None:
    asked = """
import importlib.util
sys.modules["psutil"] = None
own = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "psutil" else own(name, *rest)
from engine.machine import hardware
from engine.settings.config import RunConfig
from engine.planner.budget import budget_for
from engine.machine import process_memory
machine = hardware.detect()
assert 0 < machine.available_bytes <= machine.ram_bytes // 2
assert process_memory.memory_of_tree(os.getpid()) == 0
assert "psutil" in budget_for(RunConfig(device="cpu"), machine, [], "2.13.0").reasons["ram_budget"]
"""
    done = run(MAC + asked, tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_module_is_imported_on_macos(tmp_path: Path) -> None:
    asked = """
import torch, transformers, bitsandbytes
import importlib, pkgutil, engine, tinydistill_tui
for package in (engine, tinydistill_tui):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith(("__main__", "demo.train")):
            importlib.import_module(found.name)
"""
    done = run(
        MAC.replace("sys.platform =", "import torch, transformers, bitsandbytes\nsys.platform =") + asked, tmp_path
    )
    assert done.returncode == 0, done.stderr
