"""Can torch use the GPUs that the driver lists? Asked once for each GPU, driver and build of torch, and kept.

The answer comes from a process of its own (gpu_probe.py), for this one never loads torch. A GPU that cannot be used
keeps the reason: the plan is for the CPU then and says why, and ``--device cuda`` is refused at once instead of after
the text was read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.disk import places
from engine.disk.files import write_atomic
from engine.errors import DiskFull
from engine.machine import safe_child
from engine.machine.device import Device
from engine.machine.hardware import Gpu, Hardware, find_gpus

_FORMAT = 1
_TIMEOUT_SECONDS = 120  # the first start of CUDA may compile kernels


@dataclass(frozen=True)
class GpuAnswer:
    """torch's answers about a GPU.

    Attributes:
        why_not: why it cannot be used, as the end of a sentence; empty where it can.
        total_bytes: its memory; less than the driver reports if it is a part of a GPU. None when it was not asked.
        context_bytes: what a process takes there beside torch's allocator; None where that cannot be told.
        good_formats: of bf16 and fp16 those whose products came out right.
        lasting: whether the answer will be the same tomorrow.
    """

    why_not: str
    total_bytes: int | None = None
    context_bytes: int | None = None
    good_formats: tuple[str, ...] = ()
    lasting: bool = True


def checked(machine: Hardware, *, ask: bool = True) -> Hardware:
    """The machine with what torch says of its GPUs.

    Args:
        machine: as the driver reports it.
        ask: start the probe where nothing is kept (some seconds for each GPU, once); else such a GPU stays as it is.
    """
    if machine.gpus or not _may_have_others():
        return replace(machine, gpus=tuple(_checked(gpu, ask) for gpu in machine.gpus))
    gpus = tuple(_with_free_memory(gpu, machine) for gpu in _others(ask))
    return replace(machine, gpus=gpus, gpu_note="" if gpus else f"torch {torch_version()} finds none")


def torch_version() -> str:
    """The installed torch's version, such as ``2.13.0+cpu``; empty when there is none. Imports nothing."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def gpu_of(device: str) -> Gpu | None:
    """The GPU of that name in this process's environment, with what is kept of it; None where there is none."""
    where = Device.of(device)
    if where.is_host:
        return None
    gpus, _ = find_gpus()
    known = [_checked(gpu, ask=False) for gpu in gpus] or (_others(ask=False) if _may_have_others() else [])
    return next((gpu for gpu in known if gpu.device == str(where)), None)


def sees_one(device: Device) -> bool:
    """Whether this process was started so that it sees one GPU alone; it is the first then, whatever its number was."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return device.kind == "cuda" and seen.startswith(("GPU-", "MIG-")) and "," not in seen


def _may_have_others() -> bool:
    """Return whether torch may find GPUs that no library lists here: AMD's, Intel's or Apple's."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return any(f"+{build}" in torch_version() for build in ("rocm", "xpu"))


_others_seen: dict[str, tuple[float, tuple[Gpu, ...]]] = {}


def _others(ask: bool) -> tuple[Gpu, ...]:
    """The GPUs that torch itself lists; asked for again after a minute, for the free memory is part of the answer."""
    version = torch_version()
    path = places.cache() / f"gpus-{_digest(platform.node(), version, sys.prefix)}.json"
    at, seen = _others_seen.get(version, (float("-inf"), ()))
    if seen and (not ask or time.monotonic() - at < _SECONDS_BETWEEN_QUESTIONS):
        return seen
    if not ask:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return tuple(map(_listed, json.loads(path.read_text(encoding="utf-8"))))
        return ()
    found, _ = _run_probe({}, "--all")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        gpus = tuple(map(_listed, found)) if isinstance(found, list) else ()
        _others_seen[version] = time.monotonic(), gpus
        _keep(path, found)
        return gpus
    return ()


def _listed(found: dict[str, Any]) -> Gpu:
    answer = _from_json(found)
    total = int(answer.total_bytes or 0)
    free = int(found.get("free_bytes", total))
    gpu = Gpu(int(found["index"]), str(found["name"]), total, free, "", "", kind=str(found["kind"]))
    return replace(gpu, unusable=answer.why_not, context_bytes=answer.context_bytes, good_formats=answer.good_formats)


def _with_free_memory(gpu: Gpu, machine: Hardware) -> Gpu:
    """A GPU that takes its memory from main memory has no more than is free there."""
    if not Device.of(gpu.device).shares_main_memory:
        return gpu
    return replace(gpu, free_bytes=min(gpu.free_bytes, machine.available_bytes))


_SECONDS_BETWEEN_QUESTIONS = 60.0


def kept_at(gpu: Gpu) -> Path:
    """The file that keeps the answer for this GPU, driver and build of torch."""
    digest = _digest(gpu.name, gpu.driver, gpu.capability, gpu.total_bytes, torch_version(), sys.prefix)
    return places.cache() / f"gpu-{digest}.json"


def _digest(*parts: object) -> str:
    return hashlib.blake2b(json.dumps([_FORMAT, *parts]).encode(), digest_size=6).hexdigest()


def _checked(gpu: Gpu, ask: bool) -> Gpu:
    if not gpu.uuid:
        return gpu  # it was not found on this machine
    answer = _kept(gpu) or (_asked(gpu) if ask else None)
    if answer is None:
        return gpu
    total = min(gpu.total_bytes, answer.total_bytes or gpu.total_bytes)
    return replace(
        gpu,
        unusable=answer.why_not,
        total_bytes=total,
        free_bytes=min(gpu.free_bytes, total),
        context_bytes=answer.context_bytes,
        good_formats=answer.good_formats,
    )


def _kept(gpu: Gpu) -> GpuAnswer | None:
    version = torch_version()
    if version.endswith("+cpu") or not version:
        return GpuAnswer(f"the installed torch ({version or 'none'}) is built for the CPU alone")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _from_json(json.loads(kept_at(gpu).read_text(encoding="utf-8")))
    return None


@functools.cache  # an answer that does not last is not asked for at each plan of a screen
def _asked_once(uuid: str, _version: str) -> GpuAnswer:
    return _probe(uuid)


def _asked(gpu: Gpu) -> GpuAnswer:
    answer = _asked_once(gpu.uuid, torch_version())
    if answer.lasting:
        _keep(kept_at(gpu), asdict(answer))
    return answer


def _keep(path: Path, found: object) -> None:
    with contextlib.suppress(OSError, DiskFull):  # not kept: asked again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(found) + "\n")


def _probe(uuid: str) -> GpuAnswer:
    found, problem = _run_probe(visible(uuid))
    if isinstance(found, dict):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return _from_json(found)
    return GpuAnswer(problem or "torch's answer cannot be read", lasting=False)


def _run_probe(environment: dict[str, str], *words: str) -> tuple[object, str]:
    """Return the probe's output, or the reason why there is none."""
    try:
        done = subprocess.run(
            safe_child.command("engine.machine.gpu_probe", *words),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env={**safe_child.environment(), **environment, "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return None, f"torch did not answer within {_TIMEOUT_SECONDS} seconds"
    except OSError as error:
        return None, f"torch could not be asked: {error}"
    with contextlib.suppress(ValueError, IndexError):
        return json.loads(done.stdout.splitlines()[-1]), ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return None, f"torch ended when it was asked: {said[-1] if said else done.returncode}"


def visible(uuid: str) -> dict[str, str]:
    """The environment in which CUDA sees one GPU alone, as ``cuda:0``; without a name all, in the driver's order."""
    # CUDA numbers the fastest GPU 0 unless told otherwise; cuda:N of a plan counts them as the driver does.
    named = uuid.startswith(("GPU-", "MIG-"))
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **({"CUDA_VISIBLE_DEVICES": uuid} if named else {})}


def _from_json(found: dict[str, Any]) -> GpuAnswer:
    return GpuAnswer(
        why_not=str(found["why_not"]),
        total_bytes=found.get("total_bytes"),
        context_bytes=found.get("context_bytes"),
        good_formats=tuple(map(str, found.get("good_formats", ()))),
        lasting=bool(found.get("lasting", True)),
    )
