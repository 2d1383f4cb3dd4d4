"""Hardware of this machine: GPUs, memory, processor, disk; and kills for lack of memory.

All values come from the driver's management library and from the operating system; torch is never loaded and CUDA is
never started, so detection takes milliseconds and no GPU memory. No function raises: unreadable values are left out,
and ``gpu_note`` gives the reason for GPUs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.machine.cgroup import cpu_quota, memory_limits
from engine.machine.device import NVIDIA, Device

# Instruction sets that decide how fast matrix products are, as the kernel names them -> as users do.
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}


@dataclass(frozen=True)
class GpuUser:
    """A process that holds memory of a GPU.

    Attributes:
        name: of its program; empty where it cannot be seen from here, as from inside a container.
        bytes: None where the driver does not report them.
    """

    pid: int
    name: str
    bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver reports it.

    Attributes:
        index: N of ``cuda:N`` in a process that sees the GPUs in the order of the bus.
        kind: torch's device type.
        capability: compute capability, such as "8.6"; empty when the driver does not say.
        users: other processes that hold memory of it, the largest first.
        uuid: names it for CUDA, whatever the order of the GPUs; empty for one that was not found on this machine.
        unusable: why torch cannot use it, as the end of a sentence; empty if it can, or if it was not asked.
        context_bytes: what a process takes there beside torch's allocator; None where that was not measured.
        good_formats: of bf16 and fp16 those whose products were tried and came out right.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    driver: str
    capability: str
    users: tuple[GpuUser, ...] = ()
    uuid: str = field(default="", compare=False)
    unusable: str = ""
    context_bytes: int | None = None
    good_formats: tuple[str, ...] = ()
    kind: str = NVIDIA

    @property
    def device(self) -> str:
        """Its name for ``--device``, such as ``cuda:0``."""
        return str(Device(self.kind, self.index))


@dataclass(frozen=True)
class Hardware:
    """This machine, now.

    Attributes:
        ram_bytes: main memory, or the container's limit where that is less.
        available_bytes: what a new program can take now without anything being swapped or killed.
        cgroup_limit_bytes: the container's or service's limit; None without one.
        cores: CPU cores that this process may use (affinity and container quota).
        disk_free_bytes: free space where ``disk_path`` will be.
        gpu_note: why there is no GPU; empty where there is one.
    """

    gpus: tuple[Gpu, ...]
    ram_bytes: int
    available_bytes: int
    cgroup_limit_bytes: int | None
    cores: int
    cpu_name: str
    cpu_features: tuple[str, ...]
    disk_free_bytes: int
    disk_path: Path = Path()
    gpu_note: str = ""


def detect(path_for_disk: Path = Path()) -> Hardware:
    """Look at the machine.

    Args:
        path_for_disk: where files will be written; need not exist yet.
    """
    gpus, note = find_gpus()
    limits = memory_limits()
    total, available = _system_memory()
    limit = min((level.limit_bytes for level in limits), default=None)
    name, features = processor()
    return Hardware(
        gpus=gpus,
        ram_bytes=total if limit is None else min(total, limit),
        available_bytes=min([available, *(level.free_bytes for level in limits)]),
        cgroup_limit_bytes=None if limit is None or limit >= total else limit,
        cores=usable_cores(),
        cpu_name=name,
        cpu_features=features,
        disk_free_bytes=disk_free_bytes(path_for_disk),
        disk_path=path_for_disk,
        gpu_note=note,
    )


def available_bytes() -> int:
    """Main memory that can be taken now: the least of what the system and each container limit leave."""
    _, available = _system_memory()
    return min([available, *(level.free_bytes for level in memory_limits())])


def memory_bytes() -> int:
    """Main memory, or the container's limit where that is less."""
    total, _ = _system_memory()
    return min([total, *(level.limit_bytes for level in memory_limits())])


def disk_free_bytes(path: Path) -> int:
    """Free space for this user where ``path`` is or will be; 0 where nothing can be found out."""
    folder = path.expanduser().absolute()
    for candidate in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(candidate).free
    return 0


def usable_cores() -> int:
    """CPU cores that this process may run on at the same time."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on Linux
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, round(quota)))


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """GPUs that a CUDA program started from here would see, and why there are none.

    ``CUDA_VISIBLE_DEVICES`` is honoured; with ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` the indices are torch's.
    """
    try:
        import pynvml
    except ImportError:
        return (), "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        return (), _nvml_reason(pynvml, error)
    try:
        driver = _as_text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        visible = _visible(pynvml, handles)
        gpus = [gpu for i, handle in enumerate(visible) if (gpu := _gpu(pynvml, i, handle, driver)) is not None]
    except (pynvml.NVMLError, OSError) as error:
        return (), _nvml_reason(pynvml, error)
    finally:
        with contextlib.suppress(pynvml.NVMLError, OSError):
            pynvml.nvmlShutdown()
    if gpus:
        return tuple(gpus), ""
    return (), "hidden by CUDA_VISIBLE_DEVICES" if handles else "the NVIDIA driver lists no GPU"


def _gpu(nvml: Any, index: int, handle: Any, driver: str) -> Gpu | None:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = _as_text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:  # a GPU that fell off the bus; the others still count
        return None
    try:
        capability = ".".join(str(part) for part in nvml.nvmlDeviceGetCudaComputeCapability(handle))
    except nvml.NVMLError:
        capability = ""
    users = _users(nvml, handle)
    return Gpu(index, name, int(memory.total), int(memory.free), driver, capability, users, _uuid(nvml, index, handle))


def _uuid(nvml: Any, index: int, handle: Any) -> str:
    with contextlib.suppress(nvml.NVMLError, AttributeError):
        return _as_text(nvml.nvmlDeviceGetUUID(handle))
    return str(Device(NVIDIA, index))


def _users(nvml: Any, handle: Any) -> tuple[GpuUser, ...]:
    """Processes that compute or draw on a GPU; one that does both is listed once."""
    found: dict[int, int | None] = {}
    for listed in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        with contextlib.suppress(nvml.NVMLError):
            found |= {process.pid: process.usedGpuMemory for process in listed(handle)}
    users = [GpuUser(pid, _program(pid), used) for pid, used in found.items() if pid != os.getpid()]
    return tuple(sorted(users, key=lambda user: -(user.bytes or 0)))


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _visible(nvml: Any, handles: list[Any]) -> list[Any]:
    """The handles that CUDA_VISIBLE_DEVICES leaves, in its order. CUDA stops at the first entry it does not know."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return handles
    chosen = []
    for word in (part.strip() for part in wanted.split(",")):
        if word.isdigit() and int(word) < len(handles):
            chosen.append(handles[int(word)])
            continue
        if word.startswith("MIG-"):  # a part of a GPU is in no list, but has a handle
            with contextlib.suppress(nvml.NVMLError, AttributeError):
                chosen.append(nvml.nvmlDeviceGetHandleByUUID(word))
                continue
        named = [h for h in handles if word and _as_text(nvml.nvmlDeviceGetUUID(h)).startswith(word)]
        if len(named) != 1:
            break
        chosen += named
    return chosen


def _nvml_reason(nvml: Any, error: Exception) -> str:
    missing = (getattr(nvml, "NVMLError_LibraryNotFound", ()), getattr(nvml, "NVMLError_DriverNotLoaded", ()))
    if isinstance(error, missing):
        return "no NVIDIA driver is loaded"
    return f"the NVIDIA driver answers: {error}"


def _as_text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _system_memory() -> tuple[int, int]:
    """Total and available main memory, without regard to control groups."""
    return _of_meminfo() or _memory_elsewhere()


def _of_meminfo() -> tuple[int, int] | None:
    """Total and available main memory as Linux tells them; None where it does not."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Mem")}
        return values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _memory_elsewhere() -> tuple[int, int]:
    """Total and available main memory where there is no /proc; without psutil half of it is taken for available.

    On Linux, psutil reads /proc as well, and fails where a container hides it.
    """
    try:
        import psutil  # slower to import, and only needed elsewhere than on Linux

        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)
    except (ImportError, OSError, LookupError, ValueError, RuntimeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total // 2


def memory_note() -> str:
    """Why it is not known how much main memory is free, as a sentence; empty where it is."""
    if os.path.exists("/proc/meminfo"):
        return (
            "" if _of_meminfo() is not None else "half of all memory, as /proc/meminfo does not tell how much is free"
        )
    if sys.platform != "linux" and importlib.util.find_spec("psutil") is not None:
        return ""
    missing = "there is no /proc/meminfo" if sys.platform == "linux" else "the package psutil is not installed"
    return f"half of all memory, as {missing}, which tells how much is free"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """Name and instruction sets of the processor, the same for all cores."""
    name, flags = "", set[str]()
    with contextlib.suppress(OSError), cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                name = value
            elif key in ("flags", "Features"):
                flags = set(value.split())
            elif not key and (name or flags):
                break  # the next core's entry
    if not name:
        name = _brand() or platform.processor() or platform.machine()
    return " ".join(name.split()), tuple(text for flag, text in _FEATURES.items() if flag in flags)


def _brand() -> str:
    """The processor's name from sysctl, which macOS has."""
    try:
        said = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


def killed_for_memory(vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """Processes that the kernel has killed for their memory since it started; None where it does not count them.

    Kills by a container's limit are included. If two figures differ, a process was killed in between.
    """
    try:
        lines = vmstat.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def boot_id() -> str:
    """A name for this start of the machine, so that a process id from before it is not believed; empty if unknown."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    try:
        import psutil

        return str(int(psutil.boot_time()))
    except (ImportError, OSError):
        return ""
