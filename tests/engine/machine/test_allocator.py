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


def faults_a_step(*, keep: bool) -> float:
    environment = {**os.environ, **allocator_environment(keep=keep)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these variables are glibc's")
def test_kept_memory_is_used_again_and_the_other_is_handed_back() -> None:
    assert faults_a_step(keep=True) < 100
    assert faults_a_step(keep=False) > 1_000  # 70 MiB in pages of 4 KiB or, where the system makes them huge, fewer


def test_a_process_knows_whether_it_keeps_memory() -> None:
    assert keeps_memory({"PATH": "/bin", **allocator_environment(keep=True)})
    assert not keeps_memory(allocator_environment(keep=False))
    assert not keeps_memory({})
