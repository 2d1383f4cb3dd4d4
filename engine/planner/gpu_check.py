"""Can torch use the GPUs that the driver lists? Asked once for each GPU, driver and build of torch, and kept.

The answer comes from a process of its own (gpu_probe.py), for this one never loads torch. A GPU that cannot be used
keeps the reason: the plan is for the CPU then and says why, and ``--device cuda`` is refused at once instead of after
the text was read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine import places, safe_child
from engine.disk.files import write_atomic
from engine.errors import DiskFull
from engine.hardware import Gpu, Hardware, find_gpus
from engine.planner.measure import torch_version

_FORMAT = 1
_TIMEOUT_SECONDS = 120  # the first start of CUDA may compile kernels


@dataclass(frozen=True)
class GpuAnswer:
    """What torch said of a GPU.

    Attributes:
        why_not: why it cannot be used, as the end of a sentence; empty where it can.
        total_bytes: its memory; less than the driver tells where it is a part of a GPU. None when it was not asked.
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
        machine: as the driver tells.
        ask: start the probe where nothing is kept (some seconds for each GPU, once); else such a GPU stays as it is.
    """
    return replace(machine, gpus=tuple(_checked(gpu, ask) for gpu in machine.gpus))


def gpu_of(device: str) -> Gpu | None:
    """The GPU that ``cuda:N`` is in this process's environment, with what is kept of it; None where there is none."""
    index = int(device.partition(":")[2] or 0)
    gpus, _ = find_gpus()
    found = next((gpu for gpu in gpus if gpu.index == index), None)
    return None if found is None else _checked(found, ask=False)


def kept_at(gpu: Gpu) -> Path:
    """The file that keeps the answer for this GPU, driver and build of torch."""
    parts = [_FORMAT, gpu.name, gpu.driver, gpu.capability, gpu.total_bytes, torch_version(), sys.prefix]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()
    return places.cache() / f"gpu-{digest}.json"


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
        path = kept_at(gpu)
        with contextlib.suppress(OSError, DiskFull):  # not kept: asked again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(asdict(answer)) + "\n")
    return answer


def _probe(uuid: str) -> GpuAnswer:
    environment = {**safe_child.environment(), **visible(uuid), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            safe_child.command("engine.planner.gpu_probe"),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return GpuAnswer(f"torch did not answer within {_TIMEOUT_SECONDS} seconds", lasting=False)
    except OSError as error:
        return GpuAnswer(f"torch could not be asked: {error}", lasting=False)
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        return _from_json(json.loads(done.stdout.splitlines()[-1]))
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return GpuAnswer(f"torch ended when it was asked: {said[-1] if said else done.returncode}", lasting=False)


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
