"""Looking at the machine: a real one, and GPUs as the driver's library would tell them."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from engine.machine import hardware, process_memory


class _NvmlError(Exception):
    pass


class _NoDriver(_NvmlError):
    pass


class _Broken(_NvmlError):
    pass


def _driver(gpus: list[tuple[str, str, int, int]], *, error: Exception | None = None) -> SimpleNamespace:
    """A stand-in for pynvml with GPUs as (name, uuid, total, free): there is no driver on most test machines."""

    def init() -> None:
        if error is not None:
            raise error

    def memory(handle: int) -> SimpleNamespace:
        if gpus[handle][2] == 0:
            raise _Broken("GPU is lost")
        return SimpleNamespace(total=gpus[handle][2], free=gpus[handle][3])

    return SimpleNamespace(
        NVMLError=_NvmlError,
        NVMLError_LibraryNotFound=_NoDriver,
        NVMLError_DriverNotLoaded=_NoDriver,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"550.54",
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetName=lambda handle: gpus[handle][0],
        nvmlDeviceGetUUID=lambda handle: gpus[handle][1],
        nvmlDeviceGetCudaComputeCapability=lambda handle: (8, 6),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [],
        nvmlDeviceGetGraphicsRunningProcesses=lambda handle: [],
    )


TWO = [("RTX 3050", "GPU-aaa", 4 * 2**30, 3 * 2**30), ("RTX 3090", "GPU-bbb", 24 * 2**30, 20 * 2**30)]


@pytest.fixture(autouse=True)
def _all_gpus_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_several_gpus_with_their_memory_driver_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver(TWO))
    gpus, note = hardware.find_gpus()
    assert note == ""
    assert gpus[0] == hardware.Gpu(0, "RTX 3050", 4 * 2**30, 3 * 2**30, "550.54", "8.6")
    assert [gpu.index for gpu in gpus] == [0, 1]


@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", ["RTX 3090"]), ("1,0", ["RTX 3090", "RTX 3050"]), ("GPU-b", ["RTX 3090"]), ("0,-1,1", ["RTX 3050"])],
)
def test_visible_devices_choose_and_order_the_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver(TWO))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus, _ = hardware.find_gpus()
    assert [gpu.name for gpu in gpus] == names
    assert [gpu.index for gpu in gpus] == list(range(len(names)))


def test_hidden_gpus_are_said_to_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver(TWO))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.find_gpus() == ((), "hidden by CUDA_VISIBLE_DEVICES")


def test_other_programs_on_a_gpu_are_told_once_by_their_names_the_largest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = _driver(TWO)
    with subprocess.Popen(["sleep", "60"]) as other:
        while psutil.Process(other.pid).name() != "sleep":  # it is called so a moment after it is started
            time.sleep(0.01)

        def computing(handle: int) -> list[SimpleNamespace]:
            return [
                SimpleNamespace(pid=os.getpid(), usedGpuMemory=900),
                SimpleNamespace(pid=2**22 + 1, usedGpuMemory=None),
                SimpleNamespace(pid=other.pid, usedGpuMemory=300),
            ]

        def drawing(handle: int) -> list[SimpleNamespace]:
            if handle == 1:
                raise _Broken("not supported")
            return [SimpleNamespace(pid=other.pid, usedGpuMemory=300)]

        driver.nvmlDeviceGetComputeRunningProcesses = computing
        driver.nvmlDeviceGetGraphicsRunningProcesses = drawing
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        gpus, _ = hardware.find_gpus()
        other.kill()
    expected = (hardware.GpuUser(other.pid, "sleep", 300), hardware.GpuUser(2**22 + 1, "", None))
    assert [gpu.users for gpu in gpus] == [expected, expected]


def test_a_lost_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _driver([("gone", "GPU-ccc", 0, 0), *TWO]))
    assert [gpu.name for gpu in hardware.find_gpus()[0]] == ["RTX 3050", "RTX 3090"]


@pytest.mark.parametrize(
    ("module", "note"),
    [
        (_driver([], error=_NoDriver("not found")), "no NVIDIA driver is loaded"),
        (_driver([], error=_Broken("version mismatch")), "the NVIDIA driver answers: version mismatch"),
        (_driver([]), "the NVIDIA driver lists no GPU"),
        (None, "the package nvidia-ml-py is not installed"),
    ],
)
def test_no_gpu_says_why(monkeypatch: pytest.MonkeyPatch, module: object, note: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert hardware.find_gpus() == ((), note)


def test_this_machine_is_described_with_numbers_that_agree() -> None:
    found = hardware.detect(Path("does/not/exist/yet"))
    assert 0 < found.available_bytes <= found.ram_bytes
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.disk_free_bytes > 0
    assert found.cpu_name
    assert bool(found.gpus) != bool(found.gpu_note)


def test_a_container_limit_caps_memory_and_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.machine.cgroup import MemoryLimit

    monkeypatch.setattr(hardware, "memory_limits", lambda: [MemoryLimit(2**30, 2**29), MemoryLimit(2**31, 2**31 - 5)])
    found = hardware.detect(Path())
    assert (found.ram_bytes, found.cgroup_limit_bytes, found.available_bytes) == (2**30, 2**30, 5)
    assert hardware.available_bytes() == 5


def test_a_container_quota_caps_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_quota", lambda: 0.5)
    assert hardware.usable_cores() == 1


def test_the_processor_is_named_from_its_first_core(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    core = "processor\t: {}\nmodel name\t: Some   CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f amx_tile\n\n"
    cpuinfo.write_text(core.format(0) + core.format(1).replace("avx2", ""))
    assert hardware.processor(cpuinfo) == ("Some CPU @ 2 GHz", ("AVX2", "AVX-512", "AMX"))


def test_memory_of_a_tree_counts_children_and_not_file_pages(tmp_path: Path) -> None:
    held, file = 60 * 2**20, tmp_path / "file"
    file.write_bytes(bytes(40 * 2**20))
    grandchild = (
        "import mmap, sys, time\n"
        f"block = b'x' * {held}\n"
        f"file = open({str(file)!r}, 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(mapped[::4096])\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            measured = process_memory.memory_of_tree(process.pid)
            assert held < measured < held + 30 * 2**20
            for pid in process_memory._tree(process.pid)[1:]:
                os.kill(pid, 9)
        finally:
            process.kill()
    assert process_memory.memory_of_tree(process.pid) == 0


def test_children_are_found_on_kernels_that_do_not_list_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        monkeypatch.setattr(process_memory, "_children", lambda pid: None)
        assert process.pid in process_memory._tree(os.getpid())
        process.kill()


def test_a_peak_outlives_the_moment() -> None:
    program = f"import time; block = b'x' * {80 * 2**20}; time.sleep(0.3); del block; time.sleep(0.2)"
    with subprocess.Popen([sys.executable, "-c", program]) as process, process_memory.PeakMemory(process.pid) as peak:
        process.wait()
    assert 80 * 2**20 < peak.peak_bytes < 110 * 2**20


def test_a_boot_has_a_name_and_a_process_without_a_gpu_holds_none() -> None:
    assert hardware.boot_id() == hardware.boot_id() != ""
    assert not process_memory.device_bytes(os.getpid())


def test_gpu_memory_of_a_process_is_summed_and_unknown_where_it_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = _driver(TWO)
    used = [SimpleNamespace(pid=7, usedGpuMemory=100), SimpleNamespace(pid=8, usedGpuMemory=None)]
    driver.nvmlDeviceGetComputeRunningProcesses = lambda handle: used
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert [process_memory.device_bytes(pid) for pid in (7, 8, 9)] == [200, None, None]


def test_a_part_of_a_gpu_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _driver([*TWO, ("A100 MIG 1g.10gb", "MIG-77", 10 * 2**30, 9 * 2**30)])
    driver.nvmlDeviceGetCount = lambda: 2  # parts are in no list
    driver.nvmlDeviceGetHandleByUUID = lambda uuid: {"MIG-77": 2}[uuid]
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-77")
    (gpu,), _ = hardware.find_gpus()
    assert (gpu.index, gpu.uuid, gpu.total_bytes) == (0, "MIG-77", 10 * 2**30)


def test_a_driver_without_names_of_gpus_still_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _driver(TWO)
    del driver.nvmlDeviceGetUUID
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert [gpu.uuid for gpu in hardware.find_gpus()[0]] == ["cuda:0", "cuda:1"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_child_that_has_its_parents_memory_still_is_not_counted_twice() -> None:
    code = (
        "import os, sys, time\n"
        "held = bytearray(60_000_000)\n"
        "import subprocess\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "while True: subprocess.run(['true'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdout.readline()
            alone = process_memory.memory_of_tree(process.pid)
            process.stdin.write("go\n")
            process.stdin.flush()
            with process_memory.PeakMemory(process.pid, interval_seconds=0.0005) as peak:
                time.sleep(1.0)
            assert peak.peak_bytes < 1.5 * alone
        finally:
            process.kill()


@pytest.mark.parametrize("content", [None, "", "MemTotal: none\n", "MemTotal:  1000 kB\n"])
def test_memory_is_known_where_a_container_hides_it(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KeyError of psutil, or "no such file", ended each program."""

    def opened(path: str, *words: Any, **named: Any) -> Any:
        if path != "/proc/meminfo":
            return open(path, *words, **named)
        if content is None:
            raise FileNotFoundError(path)
        return io.StringIO(content)

    monkeypatch.setattr(hardware, "open", opened, raising=False)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(virtual_memory=lambda: {}["MemTotal:"]))
    monkeypatch.setattr(hardware.os.path, "exists", lambda path: path != "/proc/meminfo" or content is not None)
    total, available = hardware._system_memory()
    assert total > 2**28
    assert available == total // 2
    assert "half of all memory, as" in hardware.memory_note()
    assert "/proc/meminfo" in hardware.memory_note()
