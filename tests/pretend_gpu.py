"""A pretend GPU on a build of torch without CUDA: real numbers on the CPU, and a device tag on every storage.

    with pretend_gpu() as gpu:
        model.to("cuda:0")          # works; model.device is cuda:0
        model(ids_on_the_cpu)       # raises, as on a GPU
    gpu.launches, gpu.syncs         # how often each line of engine/ launched a kernel, and waited for the GPU

The result of an operation is where its inputs are; inputs on two devices raise :class:`MixedDevices`. Python sees
``cuda:0``, C++ sees the CPU: autograd, hooks and checkpointing work with real numbers. The counts are deterministic, so
a test can hold a limit to them.

It is a GPU of ``kind`` "cuda", "xpu" or "mps". The last has no float64, no pinned memory, no streams and no sparse
gradients: whatever wants one there raises, as on a Mac.

It cannot show races between streams, the allocator, what a kernel refuses, or how cuBLAS rounds.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
TOTAL_BYTES = 4 * 2**30

_own_device: Callable[[Tensor], torch.device] = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
_in_kernel = threading.local()
_in_call = threading.local()


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


@dataclass(frozen=True)
class _Operation:
    """An operation, as torch's own list of them has it.

    Attributes:
        is_strict: it takes no number of main memory beside tensors of a GPU, unlike ``add`` and most others: it has no
            ``device_check: NoCheck``, with which the kernel looks itself, and lets tensors without dimensions pass.
        keys: devices for which it has a kernel; empty where it is made of other operations.
    """

    is_strict: bool
    keys: frozenset[str]


@functools.cache
def _operations() -> dict[str, _Operation]:
    folder = Path(torchgen.__file__).parent
    listed = (folder / "packaged/ATen/native/native_functions.yaml").read_text(encoding="utf-8")
    entries = {entry.partition("(")[0]: entry for entry in listed.split("\n- func: ")[1:]}
    found = {}
    for name, entry in entries.items():
        delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.M)
        kernels = re.findall(r"^    ([\w, ]+): \w+", entries[delegate[1]] if delegate else entry, re.M)
        keys = frozenset(key.strip() for line in kernels for key in line.split(","))
        # On the CPU, torch's attention takes a kernel of its own; on a GPU the same call takes another.
        is_composed = any(key.startswith("Composite") for key in keys) or "_for_cpu" in name
        is_strict = "device_check: NoCheck" not in entry and "CUDA" in keys
        found[name] = _Operation(is_strict, frozenset() if is_composed else keys)
    return found


class MixedDevices(RuntimeError):
    """An operation got tensors of both devices."""


class NotThere(TypeError):
    """The device has no such thing, as MPS has no float64."""


@dataclass
class Counts:
    """Operations on the GPU, by the line of engine/ that did it (or "autograd")."""

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
    if tensor.layout is not torch.sparse_coo:
        return tensor.untyped_storage()
    # The values are the result of an operation. To leave the modes takes longer than all else here.
    with _disable_current_modes():
        return tensor._values().untyped_storage()


def _mark(tensor: Tensor, name: str, value: bool | None = None) -> bool:
    """Read or write a mark. Attributes of a storage live as long as it does, and all views share them."""
    with torch._C.DisableTorchFunction():  # a mode would look the device up again, and find the stand-in
        if _own_device(tensor).type != "cpu":
            return False
        try:
            storage = _storage(tensor)
        except (NotImplementedError, RuntimeError):  # a tensor without storage, as those of functorch
            return False
        if value is not None:
            setattr(storage, name, value)
        return bool(getattr(storage, name, False))


def _full_name(func: Any) -> str:
    name = str(func._schema.name).split("::")[-1]
    return f"{name}.{func._schema.overload_name}" if func._schema.overload_name else name


def _names_device(value: object) -> bool:
    if isinstance(value, torch.device):
        return True
    return isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda", "xpu", "mps", "meta")


def _is_gpu(value: object) -> bool:
    return torch.device(value).type not in ("cpu", "meta")  # type: ignore[call-overload,no-any-return]


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

    def __init__(self, counts: Counts, kind: str) -> None:
        super().__init__()
        self._counts = counts
        self._can_little = kind == "mps"
        # torch lists few kernels for XPU: most are in a library of their own.
        self._key = "MPS" if kind == "mps" else "CUDA"

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs or {}))
        given = [value for value in flat if isinstance(value, Tensor)]
        name = func._schema.name.split("::")[-1]
        on, others = [], []
        for tensor in given:
            (on if is_on_gpu(tensor) else others).append(tensor)
        operation = _operations().get(_full_name(func)) if on else None
        is_strict = operation is not None and operation.is_strict
        off = [
            tensor
            for tensor in (others if on else ())
            if (tensor.dim() > 0 or is_strict) and not _mark(tensor, "_of_call") and _real_device(tensor).type == "cpu"
        ]
        syncs = 0
        if on and off and name not in _MAY_CROSS:
            if not (name in _INDEXING and is_on_gpu(args[0]) and all(is_on_gpu(t) for t in args[2:3])):
                shapes = [[tuple(tensor.shape) for tensor in side] for side in (on, off)]
                raise MixedDevices(f"{func}: {shapes[0]} on cuda:0 and {shapes[1]} on cpu, at {_line()}")
            syncs += 1  # indices in main memory are copied first
        if operation is not None and "CPU" in operation.keys and self._key not in operation.keys:
            raise NotThere(f"this device has no {_full_name(func)}, at {_line()}")
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

        # An operation in C++ that is made of others makes its numbers where its inputs are: for C++ that is the CPU. So
        # does attention in torch 2.6 with the positions that it hides.
        is_of_call = getattr(_in_call, "has_tensors", False) and all(_mark(tensor, "_of_call") for tensor in given)

        def marked(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) not in known:
                if is_of_call:
                    _mark(value, "_of_call", True)
                _mark(value, "_pretend", is_result_on)
                if self._can_little and is_result_on:
                    _refuse(value)
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


def _refuse(tensor: Tensor) -> None:
    if tensor.dtype in (torch.float64, torch.complex128):
        raise NotThere(f"this device has no {tensor.dtype}, at {_line()}")
    if tensor.layout is not torch.strided:
        raise NotThere(f"this device has no {tensor.layout}, at {_line()}")


class _Devices(TorchFunctionMode):
    """Takes the GPU out of every call, and marks what the call was to make there."""

    def __init__(self, counts: Counts, can_little: bool) -> None:
        super().__init__()
        self._counts = counts
        self._can_little = can_little

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = getattr(_in_call, "has_tensors", False)
        _in_call.has_tensors = any(isinstance(value, Tensor) and is_on_gpu(value) for value in args)
        try:
            return self._handle(func, args, kwargs)
        finally:
            _in_call.has_tensors = before

    def _handle(self, func: Any, args: Any, kwargs: Any) -> Any:
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
        if func is torch.mm and "out_dtype" in kwargs:
            if self._can_little or not is_on_gpu(args[0]):
                raise NotThere("this device has no product that is summed in another format")
            return torch.mm(*(factor.to(kwargs["out_dtype"]) for factor in args))
        pins = kwargs.pop("pin_memory", False)
        if pins and self._can_little:
            raise NotThere(f"memory cannot be pinned for this device, at {_line()}")
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            result = func(*args, **kwargs)
            if func in (torch.from_numpy, torch.tensor, torch.as_tensor) and isinstance(result, Tensor):
                _mark(result, "_pretend", False)
            return self._pinned(result) if pins else result
        wanted = _is_gpu(device)
        kwargs["device"] = CPU
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if wanted and func is torch.tensor:
                self._counts.syncs[_line()] += 1  # its numbers come from main memory
            elif wanted and func.__name__ not in _NO_LAUNCH:
                self._counts.launches[_line()] += 1
            _mark(result, "_pretend", wanted)
            if wanted and self._can_little:
                _refuse(result)
        return result

    def _to(self, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        if rest and isinstance(rest[0], Tensor):
            return self._moved(tensor.to(rest[0].dtype), is_on_gpu(rest[0]))
        named = [value for value in (*rest, *kwargs.values()) if _names_device(value)]
        if not named or torch.device(named[0]).type == "meta":
            return tensor.to(*rest, **kwargs)
        was_on, wanted = is_on_gpu(tensor), _is_gpu(named[0])
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
        if self._can_little and wanted:
            _refuse(tensor)
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


_MODULES: dict[str, Any] = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}


def _functions(kind: str, stream: Any) -> dict[str, Any]:
    """The functions of torch's module for a kind of device."""
    found: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": lambda *_: None,
    }
    if kind == "mps":
        return found | {
            "recommended_max_memory": lambda: TOTAL_BYTES,
            "driver_allocated_memory": lambda: 2**20,
            "get_rng_state": torch.get_rng_state,
            "set_rng_state": lambda _: None,
        }
    properties = types.SimpleNamespace(total_memory=TOTAL_BYTES, major=8, minor=6, name="Pretend GPU", uuid="pretend")
    return found | {
        "Stream": stream,
        "current_stream": lambda *_: stream(),
        "stream": lambda *_: contextlib.nullcontext(),
        "is_initialized": lambda: False,
        "set_device": lambda *_: None,
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (8, 6),
        "mem_get_info": lambda *_: (TOTAL_BYTES - 2**29, TOTAL_BYTES),
        "memory_reserved": lambda *_: 0,
        "max_memory_reserved": lambda *_: 0,
    }


@contextlib.contextmanager
def pretend_gpu(kind: str = "cuda") -> Iterator[Counts]:
    """Inside, the first device of this kind exists, in threads that begin here too."""
    import bitsandbytes  # noqa: F401 - it registers kernels for the devices that it finds

    counts = Counts()
    gpu = torch.device(kind, 0)
    can_little = kind == "mps"

    @contextlib.contextmanager
    def modes() -> Iterator[None]:
        with _Devices(counts, can_little), _Check(counts, kind):
            yield

    def device(tensor: Tensor) -> torch.device:
        return gpu if is_on_gpu(tensor) and not getattr(_in_kernel, "on", False) else _real_device(tensor)

    own_backward, own_thread = torch.autograd._engine_run_backward, threading.Thread.run

    def backward(*args: Any, **kwargs: Any) -> Any:
        with _Devices(counts, can_little):  # a mode is off while it handles a call, as of backward(); its hooks need it
            return own_backward(*args, **kwargs)

    def run_thread(thread: threading.Thread) -> None:
        with modes():  # modes belong to a thread
            own_thread(thread)

    stream = type("Stream", (_Stream,), {"counts": counts})
    stand_ins: list[tuple[Any, str, Any]] = [
        (torch.Tensor, "device", property(device)),
        (torch.Tensor, "is_cuda", property(lambda tensor: device(tensor).type == "cuda")),
        (torch.Tensor, "record_stream", lambda *_: None),
        (torch.autograd, "_engine_run_backward", backward),
        (threading.Thread, "run", run_thread),
        (torch, "autocast", _Autocast),
        (torch.accelerator, "is_available", lambda: True),
        (torch.accelerator, "current_accelerator", lambda *_: torch.device(kind)),
        *((_MODULES[kind], name, value) for name, value in _functions(kind, stream).items()),
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
