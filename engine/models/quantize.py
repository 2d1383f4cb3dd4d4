"""Linear layers with weights in fewer bits: int8 by rows, or nf4 by blocks of 64.

Only the weights are quantised. They are unpacked to the compute dtype for each product, one matrix at a time, so the
same numbers come out whether a model was quantised as a whole or layer by layer as it streamed past, on any processor.
(bitsandbytes' own modules also quantise activations, or compute in bf16 where the processor can.)

Formats: int8 absmax of Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2.1, without its outliers; nf4
of Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3. Measured error of a random weight matrix: int8
0.8 %, nf4 9 %. The report shows the effect on the teacher's loss; this file does not measure it.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from engine.machine.products import linear

Method = Literal["int8", "nf4"]

_BLOCK = 64
# Rows of about this many elements are quantised at a time: bitsandbytes compares every weight with all 16 values of nf4
# at once, which takes 64 bytes for each.
_PIECE_ELEMENTS = 2**18


class QuantizedLinear(nn.Module):
    """A linear layer that holds its weight as codes and scales.

    Args:
        original: the layer it replaces; its weight may be on the meta device, its bias is taken over.
        method: int8 or nf4.

    Attributes:
        codes: int8 [out, in], or uint8 with two nf4 values each; None until there is a weight.
        scales: float32, of each row (int8) or each block of 64 (nf4).
    """

    def __init__(self, original: nn.Linear | Conv1D, method: Method) -> None:
        super().__init__()
        self.method = method
        self.transposed = isinstance(original, Conv1D)  # GPT-2's layers keep their weight as [in, out]
        shape = tuple(original.weight.shape)
        self.shape = shape[::-1] if self.transposed else shape
        self.dtype = original.weight.dtype
        self.bias = original.bias
        self.register_buffer("codes", None)
        self.register_buffer("scales", None)

    @property
    def weight(self) -> Tensor:
        """The weight as the replaced layer had it, unpacked, for models that multiply by it themselves (Mamba)."""
        assert isinstance(self.codes, Tensor), "there is no weight yet"
        assert isinstance(self.scales, Tensor)
        weight = dequantize(self.codes, self.scales, self.method, self.shape, self.dtype)
        return weight.t() if self.transposed else weight

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight as the replaced layer had it."""
        return quantize(weight.t().contiguous() if self.transposed else weight, self.method)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        assert isinstance(self.codes, Tensor), "there is no weight yet"
        assert isinstance(self.scales, Tensor)
        if torch.is_grad_enabled() and inputs.requires_grad:
            # As a matrix: torch gives a product of more dimensions as a view, and the view that a function of our own
            # returns may not be changed in place, as an adapter does.
            product: Tensor = _Product.apply(inputs.reshape(-1, self.shape[1]), self.codes, self.scales, self)
            return product.view(*inputs.shape[:-1], self.shape[0])
        return self._product(inputs, self.codes, self.scales)

    def _product(self, inputs: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        weight = dequantize(codes, scales, self.method, self.shape, self.dtype)
        return linear(inputs, weight, self.bias)


class _Product(torch.autograd.Function):
    """The product of a frozen quantised weight; the backward pass unpacks it again instead of keeping it unpacked."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codes: Tensor, scales: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return layer._product(inputs, codes, scales)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        layer: QuantizedLinear = ctx.layer
        weight = dequantize(codes, scales, layer.method, layer.shape, layer.dtype)
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None, None, None


def quantize(weight: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix [out, in], on its own device."""
    _load_kernels()
    rows, columns = weight.shape
    step = max(1, _PIECE_ELEMENTS // columns)
    if method == "nf4" and columns % _BLOCK:
        step = rows  # blocks run across rows, so rows cannot be taken apart
    # Pieces are written into their place: small results between the scratch memory of the next pieces would keep the
    # heap from using that again. With a list of them, a matrix of 470 MB took 1,029 MB more, and now 126 MB.
    codes: Tensor | None = None
    scales: Tensor | None = None
    for first, piece in zip(range(0, rows, step), weight.split(step), strict=True):
        if method == "nf4":
            piece_codes, piece_scales = torch.ops.bitsandbytes.quantize_4bit(piece, _BLOCK, "nf4", torch.uint8)
        else:
            piece_codes, piece_scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(piece.half(), 0.0)
        if codes is None or scales is None:
            codes, scales = (_for_all(part, rows, len(piece)) for part in (piece_codes, piece_scales.float()))
        for whole, part in ((codes, piece_codes), (scales, piece_scales)):
            begin = first * len(whole) // rows
            whole[begin : begin + len(part)] = part
    assert codes is not None, "a weight has rows"
    assert scales is not None
    return codes, scales


def _for_all(part: Tensor, rows: int, rows_in_part: int) -> Tensor:
    """Memory for what all rows of a matrix give, by what some of them have given."""
    return part.new_empty(len(part) * rows // rows_in_part, *part.shape[1:])


def dequantize(codes: Tensor, scales: Tensor, method: Method, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The matrix [out, in] that codes and scales stand for."""
    if method == "nf4":
        # bitsandbytes 0.50's CPU kernel restarts its blocks at each row, which is wrong where a row is no multiple of
        # 64 (quantising does not). Told that the matrix is one block wide, or one row, it cannot go astray.
        count = math.prod(shape)
        seen = (count // _BLOCK, _BLOCK) if count % _BLOCK == 0 else (count,)
        flat: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes, scales, _BLOCK, "nf4", seen, dtype)
        return flat.view(shape)
    return codes.to(dtype).mul_((scales / 127).to(dtype)[:, None])


def swap_linear_layers(layers: nn.Module, method: Method) -> dict[str, QuantizedLinear]:
    """Replace every linear layer below a module by one that will hold a quantised weight.

    Embeddings, norms and heads are left alone, and so are experts that are fused into one 3D block.

    Returns:
        The new layers by the names that the old ones had below ``layers``.
    """
    _load_kernels()
    found = {
        name: module
        for name, module in layers.named_modules()
        if (isinstance(module, nn.Linear) and multiplies(module)) or isinstance(module, Conv1D)
    }
    swapped = {}
    for name, module in found.items():
        path, _, leaf = name.rpartition(".")
        swapped[name] = QuantizedLinear(module, method)
        setattr(layers.get_submodule(path), leaf, swapped[name])
    return swapped


def multiplies(module: nn.Linear) -> bool:
    """Return whether a linear layer computes the matrix product alone; Falcon has a class of its own for it."""
    return type(module).forward is nn.Linear.forward or type(module).__name__ == "FalconLinear"


def _load_kernels() -> None:
    importlib.import_module("bitsandbytes")  # registers torch.ops.bitsandbytes; 110 MB that others need not pay
