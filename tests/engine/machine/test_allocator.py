from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from engine.machine.allocator import allocator_environment, keeps_memory

# Blocks as a training step takes them: of many sizes, written, let go of in another order, and taken again.
PROGRAM = """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    kept = [bytearray(b"x") * (size << 18) for size in (3, 40, 1, 130, 8, 8, 8, 20, 64)]
    del kept[::2]
    del kept
step()
step()
before = faults()
for _ in range(20):
    step()
print((faults() - before) / 20)
"""


# Activations, at an aligned address as torch has them, with the nodes of the backward pass between them.
ACTIVATIONS = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
def step():
    kept = []
    for number in range(400):
        block = ctypes.c_void_p()
        libc.posix_memalign(ctypes.byref(block), 64, 400_000)
        ctypes.memset(block, 1, 400_000)
        kept += [block, ctypes.c_void_p(libc.malloc(24 + 16 * (number % 64)))]
    for block in reversed(kept):
        libc.free(block)
before = anonymous()
step()
one = anonymous() - before
for _ in range(3):
    step()
print((anonymous() - before) / one)
"""


def told_by(program: str, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def faults_a_step(*, keep: bool) -> float:
    return told_by(PROGRAM, allocator_environment(keep=keep))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these variables are glibc's")
def test_kept_memory_is_used_again_and_the_other_is_handed_back() -> None:
    assert faults_a_step(keep=True) < 100
    assert faults_a_step(keep=False) > 1_000  # 70 MiB in pages of 4 KiB or, where the system makes them huge, fewer


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these variables are glibc's")
def test_activations_find_the_places_of_those_of_the_step_before() -> None:
    environment = allocator_environment(keep=True)
    assert told_by(ACTIVATIONS, environment) < 1.02
    usual = {name: value for name, value in environment.items() if name != "GLIBC_TUNABLES"}
    assert told_by(ACTIVATIONS, usual) > 1.05, "else these variables are not needed any more"


def test_tunables_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.mxfast=64")
    tunables = allocator_environment(keep=True)["GLIBC_TUNABLES"]
    assert tunables == "glibc.malloc.hugetlb=1:glibc.malloc.mxfast=64:glibc.malloc.tcache_count=0"
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert allocator_environment(keep=False)["GLIBC_TUNABLES"] == tunables, "a child of a phase adds nothing"


def test_a_process_knows_whether_it_keeps_memory() -> None:
    assert keeps_memory({"PATH": "/bin", **allocator_environment(keep=True)})
    assert not keeps_memory(allocator_environment(keep=False))
    assert not keeps_memory({})
