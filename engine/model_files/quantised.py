"""Quantised weights of a checkpoint, dequantised some rows at a time as they are read.

Supported are the layouts of these libraries: FP8 with scales of blocks, channels or tensors (DeepSeek, Qwen, fbgemm),
compressed-tensors (floats, integers, packed integers), GPTQ, AWQ, MXFP4 (gpt-oss), and bitsandbytes (nf4, fp4, int8).
Each gives a plain tensor's name, shape and numbers, so other modules need no knowledge of them. None of their code
runs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError, shown_value
from engine.model_files.headers import NUMPY_FLOATS, ReadBytes, TensorInfo, read_bytes

Floats = NDArray[np.float32]
Tensors = Mapping[str, TensorInfo]

_NUMPY = NUMPY_FLOATS | {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "BOOL": "u1",
}  # fmt: skip
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)  # e2m1
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "gptq", "awq", "mxfp4", "bitsandbytes")


def _float8(exponent_bits: int, mantissa_bits: int) -> Floats:
    """The numbers of all 256 bytes. E4M3 has no infinity and one NaN (OCP's FP8 specification, section 5)."""
    bias = 2 ** (exponent_bits - 1) - 1
    codes = np.arange(256)
    sign = np.where(codes & 128, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    numbers = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - float(bias)))
    if exponent_bits == 4:
        numbers[(codes & 127) == 127] = np.nan
    else:
        numbers = np.where(exponent == 31, np.where(mantissa == 0, np.inf, np.nan), numbers)
    return (sign * numbers).astype(np.float32)


_TABLES = {"F8_E4M3": _float8(4, 3), "F8_E5M2": _float8(5, 2)}


def load(read: ReadBytes, tensor: TensorInfo, begin: int = 0, end: int | None = None) -> NDArray[Any]:
    """QuantisedRows of a stored tensor: floats as float32, whole numbers as they are."""
    kind = np.dtype(_NUMPY[tensor.dtype])
    width = math.prod(tensor.shape[1:])
    rows = tensor.shape[0] if tensor.shape else 1
    end = rows if end is None else end
    row_bytes = width * kind.itemsize
    values: NDArray[Any] = read(tensor.file, tensor.offset + begin * row_bytes, (end - begin) * row_bytes).view(kind)
    if tensor.dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif tensor.dtype in _TABLES:
        values = _TABLES[tensor.dtype][values]
    elif tensor.dtype == "F8_E8M0":
        values = np.exp2(values.astype(np.float32) - 127)
    elif kind.kind == "f":
        values = values.astype(np.float32, copy=False)
    return values.reshape((end - begin, *tensor.shape[1:]) if tensor.shape else ())


@dataclass(frozen=True, eq=False)
class QuantisedRows:
    """A :class:`engine.model_files.headers.Decoder` of a matrix that is decoded some rows at a time.

    Args:
        name: of the format.
        shape: of the matrix.
        rows: float32 [end - begin, columns] for a range of rows.
        at_once: rows that are best decoded together.
    """

    name: str
    shape: tuple[int, ...]
    rows: Callable[[ReadBytes, int, int], Floats]
    at_once: int = 1

    @property
    def step(self) -> int:
        """Numbers of the rows that are best asked for at once."""
        return self.at_once * self._columns

    @property
    def _columns(self) -> int:
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else 1

    def values(self, read: ReadBytes, first: int, count: int) -> Floats:
        """Numbers ``first`` to ``first + count`` in the flat order."""
        begin, end = first // self._columns, -(-(first + count) // self._columns)
        with np.errstate(all="ignore"):  # a damaged scale becomes NaN, which the use of the weights shows
            found = np.asarray(self.rows(read, begin, end), dtype=np.float32).reshape(-1)
        return found[first - begin * self._columns : first - begin * self._columns + count]


@dataclass
class _Found:
    """Tensors of a checkpoint that were decoded so far."""

    stored: Tensors
    dtype: str
    made: dict[str, TensorInfo] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def add(self, name: str, main: str, parts: tuple[str, ...], decoder: QuantisedRows) -> None:
        """A tensor that is decoded from others."""
        tensor = self.stored[main]
        self.made[name] = TensorInfo(decoder.shape, self.dtype, tensor.nbytes, tensor.file, tensor.offset, decoder)
        self.used.update((main, *parts))

    def all(self) -> dict[str, TensorInfo]:
        """The decoded tensors, and those that were plain."""
        return self.made | {name: tensor for name, tensor in self.stored.items() if name not in self.used}


def can_decode(quantization: Mapping[str, Any]) -> bool:
    """Return whether a ``quantization_config`` names a supported layout; its tensors show the rest."""
    return str(quantization.get("quant_method")) in METHODS


def decoded_tensors(tensors: Tensors, quantization: Mapping[str, Any], where: str) -> dict[str, TensorInfo]:
    """A quantised checkpoint's tensors by the names, shapes and numbers of the model that it was made of.

    Args:
        tensors: as stored.
        quantization: the ``quantization_config`` of config.json.
        where: the model, for messages.

    Raises:
        ModelError: the layout is another one than the method's usual ones.
    """
    method = str(quantization.get("quant_method"))
    found = _Found(tensors, _written_as(tensors))
    try:
        if method in ("gptq", "awq"):
            _packed_columns(found, quantization, method, where)
        elif method == "mxfp4":
            _mxfp4(found)
        elif method == "bitsandbytes":
            _bitsandbytes(found)
        else:
            if method == "compressed-tensors":
                _packed_rows(found, where)
            _scaled(found, quantization)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise refused(
            where, method, f"Its tensors are not laid out as usual ({type(error).__name__}: {error})."
        ) from error
    whole = next(
        (name for name, tensor in found.all().items() if tensor.decoder is None and _is_packed(name, tensor)), ""
    )
    if whole:
        raise refused(where, method, f"{whole} is {tensors[whole].dtype}, and it has no known scales.")
    if not found.made:
        raise refused(where, method, "config.json says so, and no tensor is stored in that way.")
    return found.all()


def refused(where: str, method: str, why: str) -> ModelError:
    """The refusal of a quantised model."""
    return ModelError(
        f"The weights in {where} are quantised ({shown_value(method)}) in a way that cannot be read.",
        why,
        "Use the model they were made from; --quantization int8 or nf4 saves the memory while it runs.",
    )


def _written_as(tensors: Tensors) -> str:
    """The float format of the unquantised tensors, in which dequantised weights are written."""
    sizes = {"float16": 0, "bfloat16": 0}
    for tensor in tensors.values():
        if tensor.dtype in sizes and len(tensor.shape) > 0:
            sizes[tensor.dtype] += tensor.nbytes
    return "float16" if sizes["float16"] > sizes["bfloat16"] else "bfloat16"


def _is_packed(name: str, tensor: TensorInfo) -> bool:
    return name.endswith((".weight", ".qweight", "_packed", "_blocks")) and tensor.dtype in (
        *_TABLES, "U8", "I8", "I32", "F8_E8M0",
    )  # fmt: skip


def _scaled(found: _Found, quantization: Mapping[str, Any]) -> None:
    """A weight of floats or integers of 8 bits, times the scale of its block, row or tensor.

    Source: transformers, ``integrations/finegrained_fp8.py``; compressed-tensors,
    ``quantization/lifecycle/forward.py``.
    """
    block = quantization.get("weight_block_size")
    for name, tensor in found.stored.items():
        stem = name.removesuffix(".weight")
        scale = next(
            (f"{stem}.{end}" for end in ("weight_scale_inv", "weight_scale") if f"{stem}.{end}" in found.stored), ""
        )
        if stem == name or not scale or tensor.dtype not in (*_TABLES, "I8"):
            continue
        zero = f"{stem}.weight_zero_point"
        sizes = (int(block[0]), int(block[1])) if isinstance(block, list) and len(block) == 2 else None
        decoder = _scaled_rows(tensor, found.stored[scale], found.stored.get(zero), sizes)
        beside = (scale, zero, f"{stem}.input_scale", f"{stem}.activation_scale", f"{stem}.input_scale_ub")
        found.add(name, name, beside, decoder)


def _scaled_rows(
    weight: TensorInfo, scale: TensorInfo, zero: TensorInfo | None, block: tuple[int, int] | None
) -> QuantisedRows:
    rows, columns = weight.shape
    down, across = (*scale.shape, 1, 1)[:2]
    if block and (down, across) == (-(-rows // block[0]), -(-columns // block[1])):
        height, width = block
    elif rows % down == 0 and columns % across == 0 and math.prod(scale.shape) == down * across:
        height, width = rows // down, columns // across
    else:
        raise ValueError(f"scales of {scale.shape} for a weight of {weight.shape}")

    def decode(read: ReadBytes, begin: int, end: int) -> Floats:
        top, bottom = begin // height, (end - 1) // height + 1

        def spread(tensor: TensorInfo) -> Floats:
            part = load(read, tensor, top, bottom) if tensor.shape else load(read, tensor)
            part = np.asarray(part, dtype=np.float32).reshape(bottom - top, across)
            lines = np.repeat(part, height, axis=0)[begin - top * height : end - top * height]
            return lines if across == 1 else np.repeat(lines, width, axis=1)[:, :columns]

        values = load(read, weight, begin, end).astype(np.float32, copy=False)
        if zero is not None:
            values = values - spread(zero)
        return values * spread(scale)

    return QuantisedRows(weight.dtype, weight.shape, decode)


def _packed_rows(found: _Found, where: str) -> None:
    """compressed-tensors' integers of 4 or 8 bits, packed along a row into words of 32 bits.

    Source: compressed-tensors, ``compressors/pack_quantized``: the lowest bits are the first number, all are shifted by
    half of their range; zero points are packed down the rows.
    """
    for name, tensor in found.stored.items():
        stem = name.removesuffix(".weight_packed")
        if stem == name:
            continue
        if tensor.dtype != "I32":
            raise refused(where, "compressed-tensors", f"{name} is {tensor.dtype}, not packed integers.")
        scale = found.stored[f"{stem}.weight_scale"]
        rows, columns = (int(size) for size in load(read_bytes, found.stored[f"{stem}.weight_shape"]).tolist())
        bits = next(bits for bits in (4, 8) if -(-columns * bits // 32) == tensor.shape[1])
        parts = tuple(
            f"{stem}.{end}"
            for end in ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "input_scale")
        )
        order = found.stored.get(f"{stem}.weight_g_idx")
        zero = found.stored.get(f"{stem}.weight_zero_point")
        packed = _Packed(tensor, scale, zero, order, (rows, columns), bits)
        found.add(f"{stem}.weight", name, parts, _packed_row(packed))


@dataclass(frozen=True)
class _Packed:
    """A matrix [rows, columns] with several numbers in a word of 32 bits.

    Attributes:
        words: the numbers.
        scales: of each group of columns.
        zeros: the number that stands for zero, of each group; None where it is the middle one.
        order: the group of each column; None where they come one after the other.
    """

    words: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo | None
    order: TensorInfo | None
    shape: tuple[int, int]
    bits: int


def _packed_row(packed: _Packed) -> QuantisedRows:
    (rows, columns), bits, scale = packed.shape, packed.bits, packed.scales
    groups = scale.shape[1] if len(scale.shape) > 1 else 1
    middle = 2 ** (bits - 1)

    def decode(read: ReadBytes, begin: int, end: int) -> Floats:
        values = _unpack(load(read, packed.words, begin, end), bits)[:, :columns].astype(np.float32) - middle
        group = np.arange(columns) * groups // columns if packed.order is None else load(read, packed.order)
        if packed.zeros is not None:
            words = load(read, packed.zeros)
            zeros = _unpack(words.T, bits).T[:rows] if words.dtype == np.int32 and len(words) < rows else words + middle
            values -= (zeros[begin:end].astype(np.float32) - middle)[:, group]
        scales = load(read, scale, begin, end).reshape(end - begin, groups)
        return values * scales[:, group]

    return QuantisedRows(f"int{bits} packed", packed.shape, decode)


def _unpack(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Numbers of the words of 32 bits along the last axis, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = (np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return numbers.astype(np.uint8).reshape(*words.shape[:-1], -1)


def _packed_columns(found: _Found, quantization: Mapping[str, Any], method: str, where: str) -> None:
    """GPTQ and AWQ: the matrix is stored [in, out]; GPTQ packs down the columns, AWQ along the rows in its own order.

    Source: AutoGPTQ, ``nn_modules/qlinear``; AutoAWQ, ``awq/utils/packing_utils.py``.
    """
    bits = int(quantization.get("bits", quantization.get("w_bit", 4)))
    if bits not in ((2, 4, 8) if method == "gptq" else (4,)):
        raise refused(where, method, f"It has {bits} bits a weight.")
    version = str(quantization.get("version", "gemm")).lower()
    if method == "awq" and version != "gemm":
        raise refused(where, method, f"It is of the version {version}; gemm can be read.")
    more = 0 if str(quantization.get("checkpoint_format", "gptq")) == "gptq_v2" or method == "awq" else 1
    for name, packed in found.stored.items():
        stem = name.removesuffix(".qweight")
        if stem == name:
            continue
        parts = tuple(f"{stem}.{end}" for end in ("qzeros", "scales", "g_idx"))
        zeros, scales = (found.stored[part] for part in parts[:2])
        order = found.stored.get(parts[2])
        each = 32 // bits
        shape = (
            (packed.shape[1], packed.shape[0] * each) if method == "gptq" else (packed.shape[1] * each, packed.shape[0])
        )
        all_parts = _Packed(packed, scales, zeros, order, shape, bits)
        found.add(f"{stem}.weight", name, parts, _columns(all_parts, more, method))


def _columns(packed: _Packed, more: int, method: str) -> QuantisedRows:
    (rows, columns), bits, zeros = packed.shape, packed.bits, packed.zeros
    groups, each = packed.scales.shape[0], 32 // bits
    assert zeros is not None, "GPTQ and AWQ store them"

    def words(tensor: TensorInfo, read: ReadBytes, low: int, high: int) -> NDArray[np.uint8]:
        """Numbers of packed columns low to high."""
        numbers = _unpack(load(read, tensor)[:, low:high], bits)
        if method == "awq":
            places = np.argsort(_AWQ_ORDER)
            numbers = numbers.reshape(len(numbers), -1, each)[..., places].reshape(len(numbers), -1)
        return numbers

    def decode(read: ReadBytes, begin: int, end: int) -> Floats:
        low, high = begin // each, -(-end // each)
        kept = slice(begin - low * each, end - low * each)
        if method == "gptq":
            values = _unpack(load(read, packed.words)[:, begin:end].T, bits)  # [out, in]
        else:
            values = words(packed.words, read, low, high)[:, kept].T
        zero = words(zeros, read, low, high)[:, kept].T.astype(np.float32) + more
        scale = load(read, packed.scales)[:, begin:end].T
        group = np.arange(columns) * groups // columns if packed.order is None else load(read, packed.order)
        return (values.astype(np.float32) - zero[:, group]) * scale[:, group]

    return QuantisedRows(f"{method} int{bits}", packed.shape, decode, max(1, -(-rows // 8)))


def _mxfp4(found: _Found) -> None:
    """gpt-oss: two numbers of four bits a byte, the lower bits first, and an exponent for each 32.

    Experts are [experts, out, groups, 16] in the file, and [experts, in, out] in the model. Source: transformers,
    ``integrations/mxfp4.py``, ``convert_moe_packed_tensors``.
    """
    for name, blocks in found.stored.items():
        stem = name.removesuffix("_blocks")
        if stem == name:
            continue
        scales = found.stored[f"{stem}_scales"]
        experts, out, groups, half = blocks.shape
        shape = (experts, groups * half * 2, out)

        def decode(
            read: ReadBytes, begin: int, end: int, blocks: TensorInfo = blocks, scales: TensorInfo = scales
        ) -> Floats:
            data = load(read, blocks, begin, end)
            pairs = np.stack([_FP4[data & 15], _FP4[data >> 4]], axis=-1)
            exponents = np.exp2(load(read, scales, begin, end).astype(np.float32) - 127)
            values = pairs.reshape(*data.shape[:3], -1) * exponents[..., None]
            turned: Floats = values.reshape(data.shape[0], data.shape[1], -1).swapaxes(1, 2)
            return turned

        found.add(stem, name, (f"{stem}_scales",), QuantisedRows("MXFP4", shape, decode))


_STATE = re.compile(r"(.+)\.weight\.quant_state\.bitsandbytes__(nf4|fp4)")


def _bitsandbytes(found: _Found) -> None:
    """nf4 and fp4 with a scale for each block, which may be quantised again; int8 with a scale for each row.

    Source: bitsandbytes, ``functional.py``: ``QuantState``, ``dequantize_4bit``, ``int8_vectorwise_dequant``.
    """
    for name, tensor in found.stored.items():
        if match := _STATE.fullmatch(name):
            state = json.loads(read_bytes(tensor.file, tensor.offset, tensor.nbytes).tobytes())
            stem = f"{match[1]}.weight"
            ends = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            parts = {end: found.stored[f"{stem}.{end}"] for end in ends if f"{stem}.{end}" in found.stored}
            found.add(
                stem,
                stem,
                (name, *(f"{stem}.{end}" for end in parts)),
                _four_bits(found.stored[stem], parts, state, match[2]),
            )
        elif name.endswith(".SCB"):
            stem = f"{name.removesuffix('.SCB')}.weight"
            found.add(
                stem, stem, (name, f"{name.removesuffix('.SCB')}.weight_format"), _int8(found.stored[stem], tensor)
            )


def _int8(weight: TensorInfo, scale: TensorInfo) -> QuantisedRows:
    def decode(read: ReadBytes, begin: int, end: int) -> Floats:
        scales = load(read, scale, begin, end) / np.float32(127)
        return np.asarray(load(read, weight, begin, end) * scales[:, None], dtype=np.float32)

    return QuantisedRows("bitsandbytes int8", weight.shape, decode)


def _four_bits(
    weight: TensorInfo, parts: Mapping[str, TensorInfo], state: Mapping[str, Any], kind: str
) -> QuantisedRows:
    shape, size = tuple(int(each) for each in state["shape"]), int(state["blocksize"])
    if len(shape) != 2 or math.prod(shape) > 2 * weight.nbytes or size <= 0 or size % 2:
        raise ValueError(f"{weight.nbytes:,} bytes for the shape {shape}")
    columns = shape[1]

    def decode(read: ReadBytes, begin: int, end: int) -> Floats:
        first, last = begin * columns, end * columns
        low, high = first // size, -(-last // size)
        table = load(read, parts["quant_map"])
        last_byte = min(high * size // 2, weight.nbytes)
        data = read(weight.file, weight.offset + low * size // 2, last_byte - low * size // 2)
        numbers = table[np.stack([data >> 4, data & 15], axis=-1).reshape(-1)]
        scales: NDArray[Any] = load(read, parts["absmax"], low, high)
        if "nested_absmax" in parts:
            nested = load(read, parts["nested_absmax"])
            group = np.arange(low, high) // int(state["nested_blocksize"])
            scales = load(read, parts["nested_quant_map"])[scales] * nested[group] + np.float32(state["nested_offset"])
        spread = np.repeat(scales.astype(np.float32), size)[: len(numbers)]
        found: Floats = (numbers * spread)[first - low * size : last - low * size]
        return found

    return QuantisedRows(f"bitsandbytes {kind}", shape, decode)
