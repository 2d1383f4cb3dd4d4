"""Linear layers in float32 on a CPU, computed in the way that is faster on this processor.

On x86, torch multiplies float32 matrices with Intel's MKL, whose kernels are chosen for Intel's processors. oneDNN,
which torch brings too, compiles kernels for the instruction sets that it finds on any processor. On an AMD
EPYC with AVX2, oneDNN computes the logits of 50 to 260 thousand ids in 0.4 to 0.65 of MKL's time, and products of a
layer in 0.7 to 1.0 of it. A model that generates text multiplies one to four rows at a time, and spends its time on
reading the weights. There, MKL's batched product, with a part of the weights for each thread, takes 0.3 to 0.8 of the
time of its plain product. For small weights, MKL's plain product is as fast or faster. On Intel's processors nothing
is changed.

The choice depends on the processor, the shapes and the number of threads alone: a run that is resumed with as many
threads computes with the same kernels.

Without instructions for a 16-bit format, torch multiplies numbers of that format with code of its own. For one row,
that takes half of the time that float32 takes, since the weights are half as large. For many rows, it takes several
times as long (:func:`use_float32_for_many_rows`).

Knows nothing of models; :func:`use_products` changes any module's linear layers.
"""

from __future__ import annotations

import re
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from engine.machine import hardware

# With fewer weights, another product costs more to start than its kernel saves.
_FEWEST_WEIGHTS = 2**18
# For up to this many rows, one part of the weights for each thread is faster than oneDNN.
_FEW_ROWS = 4
_PLAIN = (Tensor, nn.Parameter)
# As processors name themselves, and Windows names them ("AMD64" is what it calls Intel's too).
_OTHER_MAKERS = re.compile(r"\bAMD\b|AuthenticAMD|Hygon")
# Columns that are computed at a time where the result goes into memory that is there: 4 MiB for 256 rows.
_COLUMNS = 4096
# For as many rows, a product in float32 saves the time that it takes to convert the weights.
_MANY_ROWS = 16
_KERNELS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``inputs @ weight.T + bias``, with gradient where autograd is on.

    Args:
        inputs: [..., in].
        weight: [out, in].
        bias: [out] or None.
    """
    if not _is_multiplied_here(inputs, weight):
        return functional.linear(inputs, weight, bias)
    given = [inputs, weight] if bias is None else [inputs, weight, bias]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        # As a matrix: a view that a function of our own returns may not be changed in place, as rotary positions do. Of
        # its shape, nothing is told to autograd, as in torch's own linear layer.
        rows = _Linear.apply(inputs.reshape(-1, inputs.shape[-1]), weight, bias)
        result: Tensor = torch.ops.aten._unsafe_view(rows, [*inputs.shape[:-1], len(weight)])
        return result
    return _product(inputs, weight, bias)


@torch.no_grad()
def linear_into(result: Tensor, inputs: Tensor, weight: Tensor) -> None:
    """Write ``inputs @ weight.T`` into ``result`` [rows, out]; ``inputs`` is [rows, in], ``weight`` [out, in]."""
    if not _is_multiplied_here(inputs, weight):
        torch.mm(inputs, weight.T, out=result)
        return
    for start in range(0, len(weight), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        result[:, columns] = _product(inputs, weight[columns], None)


def use_products(module: nn.Module) -> None:
    """Let the linear layers inside a module compute with :func:`linear`; their class and weights stay as they are."""
    if not onednn_is_faster():
        return
    for part in module.modules():
        if _is_plain_layer(part):
            part.forward = MethodType(_forward, part)


def use_float32_for_many_rows(module: nn.Module) -> None:
    """Let 16-bit linear layers multiply many rows in float32, where torch has no kernels for their format.

    The weights stay as they are: they are converted for each product, some columns at a time. For inference on a CPU.
    """
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if _is_plain_layer(part) and isinstance(weight, Tensor) and _lacks_kernels(weight):
            part.forward = MethodType(_forward_in_float32, part)


@cache
def onednn_is_faster() -> bool:
    """Return whether this module multiplies large float32 matrices: MKL is for processors of another maker."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    name, _ = hardware.processor()
    has_kernels = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return bool(_OTHER_MAKERS.search(name)) and has_kernels and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_plain_layer(part: nn.Module) -> bool:
    """Whether a module computes as ``nn.Linear`` does, or as :func:`use_products` has made it."""
    own = part.__dict__.get("forward")
    return type(part).forward is nn.Linear.forward and (own is None or getattr(own, "__func__", None) is _forward)


def _forward(self: nn.Linear, input: Tensor) -> Tensor:
    return linear(input, self.weight, self.bias)


@torch.no_grad()
def _forward_in_float32(self: nn.Linear, input: Tensor) -> Tensor:
    rows = input.reshape(-1, input.shape[-1])
    if len(rows) < _MANY_ROWS:
        return functional.linear(input, self.weight, self.bias)
    rows = rows.float()
    result = input.new_empty(len(rows), self.out_features)
    for start in range(0, self.out_features, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        bias = None if self.bias is None else self.bias[columns].float()
        result[:, columns] = linear(rows, self.weight[columns].float(), bias)
    return result.view(*input.shape[:-1], self.out_features)


def _lacks_kernels(weight: Tensor) -> bool:
    """Whether torch multiplies a weight of this format with code of its own, on x86."""
    question = _KERNELS.get(weight.dtype)
    if question is None or weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, question):
        return False
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return is_x86 and not getattr(torch.ops.mkldnn, question)()


def _is_multiplied_here(inputs: Tensor, weight: Tensor) -> bool:
    return (
        weight.numel() >= _FEWEST_WEIGHTS
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and type(weight) in _PLAIN
        and inputs.dim() > 1
        and not torch.is_autocast_enabled("cpu")
        and onednn_is_faster()
    )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = inputs.numel() // inputs.shape[-1]
    if rows > _FEW_ROWS or rows == 0:
        return _by_onednn(inputs, weight, bias)
    if rows == torch.get_num_threads() == 1:
        return functional.linear(inputs, weight, bias)
    return _by_parts(inputs.reshape(rows, -1), weight, bias).view(*inputs.shape[:-1], len(weight))


def _by_parts(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply ``rows`` [rows, in] in one batched product, with a part of the weights for each thread: [rows, out]."""
    threads = torch.get_num_threads()
    even = len(weight) - len(weight) % threads
    parts = weight[:even].unflatten(0, (threads, -1))
    columns = torch.bmm(parts, rows.T.expand(threads, -1, -1)).flatten(0, 1)
    if even < len(weight):
        columns = torch.cat([columns, weight[even:] @ rows.T])
    result = columns.T.contiguous()
    return result if bias is None else result.add_(bias)


def _by_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # It is the operation to which torch's own compiler turns a linear layer.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """The forward product by :func:`_product`; torch computes those of the backward pass, where neither is faster."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_inputs, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(inputs if wants_weight else None, weight if wants_inputs else None)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            gradient @ weight if wants_inputs else None,
            gradient.T @ inputs if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
        )
