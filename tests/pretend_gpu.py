"""A pretend GPU on a build of torch without CUDA: real numbers on the CPU, and a device tag on every storage.

    with pretend_gpu() as gpu:
        model.to("cuda:0")          # works; model.device is cuda:0
        model(ids_on_the_cpu)       # raises, as on a GPU
    gpu.launches, gpu.syncs         # how often each line of engine/ launched a kernel, and waited for the GPU

What an operation makes is where its inputs are; inputs on two devices raise :class:`MixedDevices`. Python sees
``cuda:0``, C++ sees the CPU: autograd, hooks and checkpointing work with real numbers. The counts are deterministic, so
a test can hold a limit to them.

It cannot show races between streams, the allocator, what a kernel refuses, or how cuBLAS rounds.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
TOTAL_BYTES = 4 * 2**30

_own_device: Callable[[Tensor], torch.device] = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
_in_kernel = threading.local()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that launch nothing: views, and memory that is taken but not written.
_NO_LAUNCH = _words(
    """view _unsafe_view reshape expand slice select t transpose permute unsqueeze squeeze detach alias as_strided split
    split_with_sizes unbind diagonal unfold _reshape_alias lift_fresh narrow empty empty_like new_empty empty_strided
    new_empty_strided _indices _values indices values is_pinned sym_size _local_scalar_dense set_ resize_
    _sparse_coo_tensor_with_dims_and_tensors _coalesced_"""
)
# Operations that wait for the GPU, because their result's size or value is needed on the CPU.
_SYNC = _words(
    """_local_scalar_dense nonzero _unique2 unique_dim unique_consecutive masked_select is_nonzero equal
    repeat_interleave _coalesce bincount"""
)
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
_MAY_CROSS = frozenset({"copy_", "_to_copy", "set_", "is_same_size"})


class MixedDevices(RuntimeError):
    """An operation got tensors of both devices."""


@dataclass
class Counts:
    """What was done on the GPU, by the line of engine/ that did it (or "autograd")."""

    launches: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Begin again at zero."""
        self.launches.clear()
        self.syncs.clear()

    def told(self) -> str:
        """The ten largest of each, for a message."""
        return f"launches {self.launches.most_common(10)}, syncs {self.syncs.most_common(10)}"


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is on the pretend GPU."""
    return bool(_mark(tensor, "_pretend"))


def _real_device(tensor: Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():  # a mode would look the attribute up again, and find the stand-in
        return _own_device(tensor)


def _storage(tensor: Tensor) -> Any:
    return (tensor._values() if tensor.layout is torch.sparse_coo else tensor).untyped_storage()


def _mark(tensor: Tensor, name: str, value: bool | None = None) -> bool:
    """Read or write a mark. Attributes of a storage live as long as it does, and all views share them."""
    if _real_device(tensor).type != "cpu":
        return False
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        try:
            storage = _storage(tensor)
        except (NotImplementedError, RuntimeError):  # a tensor without storage, as those of functorch
            return False
        if value is not None:
            setattr(storage, name, value)
        return bool(getattr(storage, name, False))


def _names_device(value: object) -> bool:
    if isinstance(value, torch.device):
        return True
    return isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda", "meta")


def _line() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        _, found, place = frame.f_code.co_filename.rpartition("/engine/")
        if found:
            return f"{place}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "autograd"


class _Check(TorchDispatchMode):
    """Looks at every operation: refuses mixed devices, marks what comes out, counts."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs or {}))
        given = [value for value in flat if isinstance(value, Tensor)]
        name = func._schema.name.split("::")[-1]
        on = [tensor for tensor in given if is_on_gpu(tensor)]
        off = [t for t in given if t.dim() > 0 and _real_device(t).type == "cpu" and not is_on_gpu(t)]
        syncs = 0
        if on and off and name not in _MAY_CROSS:
            if not (name in _INDEXING and is_on_gpu(args[0]) and all(is_on_gpu(t) for t in args[2:3])):
                shapes = [[tuple(tensor.shape) for tensor in side] for side in (on, off)]
                raise MixedDevices(f"{func}: {shapes[0]} on cuda:0 and {shapes[1]} on cpu, at {_line()}")
            syncs += 1  # indices in main memory are copied first
        if on:
            is_mask = name in _INDEXING and any(
                isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1] or ()
            )
            syncs += is_mask or name in _SYNC
            self._counts.launches[_line()] += name not in _NO_LAUNCH
        if name == "copy_" and is_on_gpu(args[0]) != is_on_gpu(args[1]):
            syncs += not (len(args) > 2 and args[2] and any(_mark(tensor, "_pinned") for tensor in args[:2]))
        if syncs:
            self._counts.syncs[_line()] += syncs
        result = self._run(func, args, kwargs or {})
        if name == "_local_scalar_dense":
            return result
        known = {id(tensor) for tensor in given}
        is_result_on = is_on_gpu(args[0]) if name == "copy_" else bool(on)

        def marked(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) not in known:
                _mark(value, "_pretend", is_result_on)
            return value

        tree_map(marked, result)
        return result

    @staticmethod
    def _run(func: Any, args: Any, kwargs: Any) -> Any:
        # A library's kernel that is written in Python sees the device on which it really runs.
        before = getattr(_in_kernel, "on", False)
        _in_kernel.on = True
        try:
            return func(*args, **kwargs)
        finally:
            _in_kernel.on = before


class _Devices(TorchFunctionMode):
    """Takes "cuda" out of every call, and marks what the call was to make there."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cpu:
            return self._moved(args[0], False)
        if func is Tensor.cuda:
            return self._moved(args[0], True)
        if func is Tensor.pin_memory:
            return self._pinned(args[0].clone())
        if func is Tensor.is_pinned:
            return _mark(args[0], "_pinned")
        if func in (Tensor.tolist, Tensor.numpy) and is_on_gpu(args[0]):
            if func is Tensor.numpy:
                raise TypeError("a tensor on cuda:0 cannot be seen by numpy; use Tensor.cpu() first")
            self._counts.syncs[_line()] += 1
        if func is Tensor.to:
            return self._to(args, kwargs)
        pins = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            result = func(*args, **kwargs)
            if func in (torch.from_numpy, torch.tensor, torch.as_tensor) and isinstance(result, Tensor):
                _mark(result, "_pretend", False)
            return self._pinned(result) if pins else result
        wanted = torch.device(device).type == "cuda"
        kwargs["device"] = CPU
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if wanted and func is torch.tensor:
                self._counts.syncs[_line()] += 1  # its numbers come from main memory
            elif wanted and func.__name__ not in _NO_LAUNCH:
                self._counts.launches[_line()] += 1
            _mark(result, "_pretend", wanted)
        return result

    def _to(self, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        if rest and isinstance(rest[0], Tensor):
            return self._moved(tensor.to(rest[0].dtype), is_on_gpu(rest[0]))
        named = [value for value in (*rest, *kwargs.values()) if _names_device(value)]
        if not named or torch.device(named[0]).type == "meta":
            return tensor.to(*rest, **kwargs)
        was_on, wanted = is_on_gpu(tensor), torch.device(named[0]).type == "cuda"
        non_blocking = kwargs.pop("non_blocking", False)
        rest = [CPU if _names_device(value) else value for value in rest]
        kwargs = {key: CPU if _names_device(value) else value for key, value in kwargs.items()}
        if was_on and not wanted:  # as torch does: the conversion is made on the source's device
            with contextlib.suppress(KeyError):
                kwargs.pop("device")
        result = tensor.to(*rest, **kwargs)
        return self._moved(result, wanted, was_on, non_blocking and _mark(tensor, "_pinned"))

    def _moved(self, tensor: Tensor, wanted: bool, was_on: bool | None = None, overlaps: bool = False) -> Tensor:
        if (is_on_gpu(tensor) if was_on is None else was_on) == wanted:
            return tensor
        self._counts.launches[_line()] += 1
        if not overlaps:
            self._counts.syncs[_line()] += 1
        result = tensor.clone()
        _mark(result, "_pretend", wanted)
        return result

    @staticmethod
    def _pinned(tensor: Tensor) -> Tensor:
        _mark(tensor, "_pinned", True)
        return tensor


class _Stream:
    """A stream that is always up to date."""

    counts: Counts

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.counts.syncs[_line()] += 1

    def wait_stream(self, _other: Any) -> None:
        pass

    def wait_event(self, _event: Any) -> None:
        pass

    def record_event(self, *_: Any) -> Any:
        return types.SimpleNamespace(synchronize=self.synchronize, wait=lambda *_: None, query=lambda: True)


class _Autocast(torch.autocast):  # type: ignore[misc]
    def __init__(self, _device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


@contextlib.contextmanager
def pretend_gpu() -> Iterator[Counts]:
    """Inside, ``cuda:0`` exists, in threads that begin here too."""
    import bitsandbytes  # noqa: F401 - it registers kernels for the devices that it finds

    counts = Counts()

    @contextlib.contextmanager
    def modes() -> Iterator[None]:
        with _Devices(counts), _Check(counts):
            yield

    def device(tensor: Tensor) -> torch.device:
        return GPU if is_on_gpu(tensor) and not getattr(_in_kernel, "on", False) else _real_device(tensor)

    own_backward, own_thread = torch.autograd._engine_run_backward, threading.Thread.run

    def backward(*args: Any, **kwargs: Any) -> Any:
        with _Devices(counts):  # a mode is off while it handles a call, as of backward(); its hooks need it
            return own_backward(*args, **kwargs)

    def run_thread(thread: threading.Thread) -> None:
        with modes():  # modes belong to a thread
            own_thread(thread)

    stream = type("Stream", (_Stream,), {"counts": counts})
    properties = types.SimpleNamespace(total_memory=TOTAL_BYTES, major=8, minor=6, name="Pretend GPU", uuid="pretend")
    stand_ins: list[tuple[Any, str, Any]] = [
        (torch.Tensor, "device", property(device)),
        (torch.Tensor, "is_cuda", property(lambda tensor: device(tensor) == GPU)),
        (torch.Tensor, "record_stream", lambda *_: None),
        (torch.autograd, "_engine_run_backward", backward),
        (threading.Thread, "run", run_thread),
        (torch, "autocast", _Autocast),
        (torch.cuda, "Stream", stream),
        (torch.cuda, "current_stream", lambda *_: stream()),
        (torch.cuda, "stream", lambda *_: contextlib.nullcontext()),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_initialized", lambda: False),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "set_device", lambda *_: None),
        (torch.cuda, "synchronize", lambda *_: None),
        (torch.cuda, "get_device_properties", lambda *_: properties),
        (torch.cuda, "get_device_capability", lambda *_: (8, 6)),
        (torch.cuda, "mem_get_info", lambda *_: (TOTAL_BYTES - 2**29, TOTAL_BYTES)),
        (torch.cuda, "set_per_process_memory_fraction", lambda *_: None),
        (torch.cuda, "memory_reserved", lambda *_: 0),
        (torch.cuda, "max_memory_reserved", lambda *_: 0),
    ]
    before = [(owner, name, vars(owner).get(name, ...)) for owner, name, _ in stand_ins]
    for owner, name, value in stand_ins:
        setattr(owner, name, value)
    try:
        with modes():
            yield counts
    finally:
        for owner, name, value in reversed(before):
            delattr(owner, name) if value is ... else setattr(owner, name, value)
