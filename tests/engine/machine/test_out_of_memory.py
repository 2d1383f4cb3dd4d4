"""Every library's way of saying that memory ran out is known; what only sounds like it is not."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.errors import ModelError, OutOfMemory, Stopped, TokensDamaged
from engine.machine.out_of_memory import is_out_of_memory, tells_out_of_memory

SAID = [
    # torch's allocators
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 3.81 GiB of which 12 MiB is free",
    "HIP out of memory. Tried to allocate 2.00 GiB.",
    "XPU out of memory. Tried to allocate 96.00 MiB (GPU 0; 5.57 GiB total capacity)",
    "MPS backend out of memory (MPS allocated: 17.93 GB, other allocations: 384.00 KB, max allowed: 18.13 GB).",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "unable to mmap 4096 bytes from file <model.safetensors>: Cannot allocate memory (12)",
    # the driver and the runtime
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "CUDA error: cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "HIP error: out of memory",
    "hipErrorOutOfMemory",
    "cudaHostAlloc failed: out of memory",
    # the libraries beside them
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "rocblas_status_memory_error",
    "miopenStatusAllocFailed",
    "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)",
    "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)",
    "Error out of memory at line 380 in file /src/csrc/ops.cu",  # bitsandbytes, which then ends the process
    "memory allocation of 1073741824 bytes failed",  # Rust
    "std::bad_alloc",
    "Unable to allocate 2.00 GiB for an array with shape (268435456,)",
]

NOT_SAID = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "cuDNN error: CUDNN_STATUS_BAD_PARAM",
    "index 7 is out of bounds for dimension 0 with size 5",
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    "No space left on device",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "Trying to resize storage that is not resizable",
    "The memory format is not supported",
    "can't start new thread",
]


@pytest.mark.parametrize("said", SAID)
def test_what_a_library_says_is_understood(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert tells_out_of_memory(f"some lines before\n{said}\n")


@pytest.mark.parametrize("said", NOT_SAID)
def test_other_errors_are_not_taken_for_it(said: str) -> None:
    assert not is_out_of_memory(RuntimeError(said))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no words"),
        MemoryError(),
        OutOfMemory("The teacher phase ran out of memory."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("Unable to synchronously open file (memory allocation failed for raw data chunk)"),  # HDF5: no number
        ExceptionGroup("both", [ValueError("x"), MemoryError()]),
    ],
)
def test_errors_of_that_kind_are_known_without_words(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file", "/data/out of memory.txt"),
        OSError(errno.ENOSPC, "No space left on device"),
        ModelError("The text says: out of memory", "", ""),
        KeyboardInterrupt("out of memory"),
        None,
    ],
)
def test_a_name_or_our_own_words_are_no_lack_of_memory(error: BaseException | None) -> None:
    assert not is_out_of_memory(error)


def raised_while(first: Exception, then: Exception, *, cause: bool = False, cut: bool = False) -> Exception:
    """The second error as it looks when it was raised in the handler of the first."""
    try:
        try:
            raise first
        except Exception as error:
            if cause or cut:
                raise then from (error if cause else None)
            raise then  # noqa: B904 - a context without a cause
    except Exception as error:
        return error


@pytest.mark.parametrize("cause", [True, False])
def test_the_chain_of_causes_is_looked_through(cause: bool) -> None:
    inner = raised_while(torch.OutOfMemoryError("CUDA out of memory"), KeyError("a"), cause=cause)
    assert is_out_of_memory(raised_while(inner, TokensDamaged("It is damaged.", "", ""), cause=cause))


def test_a_cut_chain_and_a_circle_end() -> None:
    assert not is_out_of_memory(raised_while(MemoryError(), ValueError("handled"), cut=True))
    circle = ModelError("a", "", "")
    circle.__cause__ = circle
    assert not is_out_of_memory(circle)


def test_an_error_of_another_thread_keeps_its_kind() -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: out of memory")

    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError) as caught:
        pool.submit(fail).result()
    assert is_out_of_memory(caught.value)


def test_a_stop_is_a_stop() -> None:
    assert not is_out_of_memory(Stopped("The run was stopped."))
