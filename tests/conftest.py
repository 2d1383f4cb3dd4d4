"""Every test has a home of its own: no profile, run or measurement of the user who runs them is seen or changed."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.forks import share_nothing_with_children

# One thread: two test processes side by side neither fight for cores nor change a matrix product's rounding.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
# The tests are of a machine without a GPU, wherever they run: figures, plans and forked processes depend on it. A
# real one is tried by tests/benchmarks/gpu.py.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Containers often forbid compiled files. Each process of the tests would then compile all that it imports of this tree:
# some hundreds of processes, and 250 files of tests in each of pytest's own.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
share_nothing_with_children()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it does not wait for
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A garbage collection looks at every object that is alive, and the imports alone leave some 300,000. A streamed model
# collects after each wave. The imported objects are set apart below, and automatic collections are made rarer.
gc.set_threshold(10_000, 10, 10)

_HOMES = itertools.count()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # mktemp looks through all folders that are there for a free name, and there are thousands.
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(_HOMES))
    home.mkdir(parents=True)
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))
    for variable in ("TINYDISTILL_RUNS", "NO_COLOR", "ACCESSIBLE", "SSH_CONNECTION", "SSH_TTY"):
        monkeypatch.delenv(variable, raising=False)
    # Figures of the planner are those of torch's build for the CPU and of a processor with kernels for half precision,
    # whatever is installed and whatever this processor is.
    monkeypatch.setattr("engine.machine.kernels.has_half_kernels", lambda: True)
    monkeypatch.setattr("engine.machine.torch_memory.more_bytes", lambda: 0)


@pytest.fixture(scope="session")
def measured_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the rates of this machine, measured once in all processes of the tests.

    Those of one thread stand for those of all cores too: no test depends on how fast the machine is.
    """
    from engine.machine.hardware import usable_cores
    from engine.planner.measure import kept_at, machine_rates

    base = tmp_path_factory.getbasetemp()
    kept = (base if "PYTEST_XDIST_WORKER" not in os.environ else base.parent) / "measured"
    kept.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setenv("XDG_CACHE_HOME", str(kept))
        patch.setattr("engine.planner.measure._TIMEOUT_SECONDS", 600)  # other programs may keep the processor busy
        if not kept_at("cpu", 1).exists():
            machine_rates(measure=True, threads=1)
            if usable_cores() > 1:
                shutil.copyfile(kept_at("cpu", 1), kept_at("cpu", usable_cores()))
    return kept


@pytest.fixture
def machine_is_measured(_own_home: None, measured_cache: Path) -> None:
    """The rates of this machine are in the test's home. They are measured once for all tests, which takes seconds."""
    shutil.copytree(measured_cache, os.environ["XDG_CACHE_HOME"], dirs_exist_ok=True)


def pytest_collection_finish() -> None:
    """Set apart what collecting the tests imported."""
    _set_apart()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Set apart what a file's tests imported and keep."""
    if nextitem is not None and nextitem.path != item.path:
        _set_apart()


def _set_apart() -> None:
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for all the quick tests, which wait for screens and children half of their time; else none."""
    is_everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 3 if is_everything and config.option.markexpr == "not slow" else 0
