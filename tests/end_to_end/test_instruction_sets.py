"""Parity on processors that this one is not: the same tests with its newer instructions switched off.

Environment variables set the kernels that oneDNN, PyTorch and MKL choose by processor. Results that are equal
to the last bit must be so with each of their choices, and with more threads than the one that the other tests have.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.machine import hardware

ROOT = Path(__file__).parents[2]
SETS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "two threads": {"OMP_NUM_THREADS": "2"},
}
PARITY = (
    "tests/engine/models/streaming/test_teacher.py",
    "tests/engine/student/test_train.py",
    "tests/engine/student/test_mapped.py",
    "tests/engine/teacher/test_score.py",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_what_is_equal_to_the_last_bit_is_so_with_these_instructions(name: str, tmp_path: Path) -> None:
    if name != "two threads" and "AVX-512" not in hardware.detect(tmp_path).cpu_features:
        pytest.skip("this processor has no AVX-512: the default tests are those with AVX2")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        *PARITY,
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **SETS[name]}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
