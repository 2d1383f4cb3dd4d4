"""Is this error a lack of memory? The one place that knows each library's wording.

torch has an exception of its own for CUDA, but cuBLAS, cuDNN, the driver, other backends and the CPU's allocator raise
plain RuntimeErrors, the system an OSError, and some C code prints a line and exits. All of them mean the same here: the
phase ends, and continues with less. This file knows nothing of phases, and never imports torch.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from engine.errors import OutOfMemory, TinyDistillError

# Windows: ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT ("the paging file is too small").
_WINDOWS = (8, 14, 1455)

_WORDS = re.compile(
    r"""
      out[ _]?of[ _]?(?:(?:device|host|gpu|video|system)[ _])?memory      # CUDA, HIP, MPS, XPU, the CUDA driver
    | out_of_resources                                                    # XPU, of a device
    | (?:_|\b)alloc(?:ation)?[ _]?failed                                  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, hipBLAS
    | StatusAllocFailed | cudaErrorMemoryAllocation | rocblas_status_memory_error
    | (?:cublas|cudnn|cusolver|cusparse|hipblas|hipsparse)_status_not_initialized  # no memory is left for a handle
    | (?:cannot|can't|can\ not|could\ not|unable\ to|failed\ to)\ allocate\ (?!shared)
    | (?:not\ enough|insufficient)\ (?:[\w-]+\ )?memory
    | memory\ allocation\ (?:of\ [\d,]+\ bytes\ )?failed                   # Rust: tokenizers, safetensors
    | bad[ _]alloc(?:ation)?\b                                            # C++
    """,
    re.IGNORECASE | re.VERBOSE,
)


def limit_of_a_process() -> int | None:
    """Bytes of addresses that each process may take (``ulimit -v``); None without a limit.

    Libraries take addresses of gigabytes and fill few of them, so memory may be free and nothing can be allocated.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an allocator gave up, in the error itself or in what led to it.

    The chain of causes counts, because a library or this program may have put an error of its own around the first one.
    ``raise … from None`` cuts the chain here as it does in a traceback.
    """
    return any(_says_so(one) for one in _chain(error))


def tells_out_of_memory(text: str) -> bool:
    """Return whether a library's words say that memory ran out."""
    return _WORDS.search(text) is not None


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno is not None:
        # The text of an OSError with a number is the system's and names a file: only the number counts.
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) in _WINDOWS
    if isinstance(error, TinyDistillError) or not isinstance(error, Exception):
        return False  # our own sentences may speak of memory; an interrupt is one whatever it says
    return tells_out_of_memory(str(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting.append(one.__cause__)
        if not one.__suppress_context__:
            waiting.append(one.__context__)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
