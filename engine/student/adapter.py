"""A low-rank adapter: two small trained matrices beside each chosen linear layer of a frozen model.

``y = W x + (alpha / rank) B A x``, with A [rank, inputs] at random and B [outputs, rank] zero at first, so that the
training begins with the model as it is. The matrices are no part of the model: a hook on each linear layer adds their
product to the layer's output. So the model's own tensors keep their names and formats (float32, half precision,
quantised, or on the disk until they are needed), and without the hooks' work the model is its base, bit for bit.

The arithmetic is peft's, so that :mod:`engine.student.adapter_file` can write a folder that peft loads. peft itself is
not used in training: it takes 60 MB and two seconds to import, and knows no streamed layers.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.model_files.adapter_shape import AdapterShape
from engine.models.linears import chosen, decoder_linears

NewTensor = Callable[[torch.Size, torch.dtype], Tensor]
"""Makes memory for one matrix; whatever is in it."""


class LowRankAdapter:
    """A :class:`~engine.student.trainable.Trainable`; the model's own parameters are frozen.

    Args:
        model: its linear layers get hooks.
        shape: which adapter.
        device: where its matrices are.
        seed: of A.
        new_tensor: makes memory for the matrices; in memory when not given.

    Attributes:
        shape: as given.
        linears: the layers that are adapted, in the model's order.
        is_on: whether the hooks add anything.
        scale: factor on the product.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shape: AdapterShape,
        *,
        device: torch.device,
        seed: int,
        new_tensor: NewTensor | None = None,
    ) -> None:
        self.shape = shape
        self.linears = chosen(decoder_linears(model), shape.targets)
        self.is_on = True
        self.scale = shape.alpha / shape.rank
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        model.requires_grad_(False)
        for linear in self.linears:
            a = _tensor((shape.rank, linear.columns), new_tensor, device)
            b = _tensor((linear.rows, shape.rank), new_tensor, device)
            _fill(a, linear.name, seed)
            b.zero_()
            self._pairs[linear.name] = nn.Parameter(a), nn.Parameter(b)
            linear.module.register_forward_hook(self._hook(linear.name), with_kwargs=True)

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for _, parameter in self.parameters())

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """See :class:`~engine.student.trainable.Trainable`; the names are peft's, below ``base_model.model.``."""
        for name, (a, b) in self._pairs.items():
            yield f"{name}.lora_A.weight", a
            yield f"{name}.lora_B.weight", b

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`~engine.student.trainable.Trainable`."""
        return {name: parameter.detach() for name, parameter in self.parameters()}

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A [rank, inputs] and B [outputs, rank] of an adapted layer."""
        a, b = self._pairs[name]
        return a.detach(), b.detach()

    @contextmanager
    def off(self) -> Iterator[None]:
        """While this is open, the model is its base."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        a, b = self._pairs[name]

        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not self.is_on:
                return None
            inputs = args[0] if args else next(iter(kwargs.values()))
            low = nn.functional.linear(inputs, a.to(inputs.dtype)).to(output.dtype)
            add_product(output, low, b.to(output.dtype), self.scale)
            return None

        return add


def add_product(output: Tensor, low: Tensor, b: Tensor, scale: float) -> None:
    """Add ``scale * low @ b.T`` to ``output`` [..., rows] where it stands; ``low`` is [..., rank].

    A layer's output in a second place would leave a hole in the heap that no tensor of its size fits into: memory of an
    aligned address is cut from a larger piece. A tensor that is a view is changed through its base: a change through
    the view would copy its gradient.
    """
    whole = output if output._base is None else output._base
    whole.view(-1, b.shape[0]).addmm_(low.view(-1, b.shape[1]), b.t(), alpha=scale)


def _tensor(shape: tuple[int, int], new_tensor: NewTensor | None, device: torch.device) -> Tensor:
    size = torch.Size(shape)
    return torch.empty(size, device=device) if new_tensor is None else new_tensor(size, torch.float32)


@torch.no_grad()
def _fill(a: Tensor, name: str, seed: int) -> None:
    """A's first values, as peft draws them; each layer has its own generator, so that no order matters."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    bound = math.sqrt(3) * math.sqrt(2 / (1 + 5)) / math.sqrt(a.shape[1])  # kaiming_uniform_ with a = sqrt(5)
    a.copy_(torch.rand(a.shape, generator=generator).mul_(2 * bound).sub_(bound))
