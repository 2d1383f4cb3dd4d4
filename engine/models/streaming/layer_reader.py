"""Decoder layers from disk, one after the other, the next one read by a thread while the caller computes with this one.

Two slots of memory hold the layer in use and the layer that comes next; they are allocated once, so that a model of a
hundred layers takes no more memory than one of four, and none of it is handed back and forth with the system. Without
prefetching one slot is enough. On a GPU these slots are on the device, and a layer passes through another one in pinned
main memory. The slots there are memory of the stream that computes, whatever stream copies into them: torch's allocator
has a pool for each stream, and what one has freed the other cannot use.

Knows nothing of what a layer computes, nor of hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.machine.torch_device import CopyStream, host_bytes, kind_of
from engine.models.checkpoint import Checkpoint
from engine.models.finite import check_numbers
from engine.models.weight_plan import Recipe, WeightPlan

_ALIGN = 64  # bytes; what torch gives every tensor, and what the widest vector instructions like

Weights = dict[str, Tensor]


class Slot:
    """A piece of memory that tensors are cut from, and that is used again as a whole."""

    def __init__(self, capacity: int, *, pinned: bool = False, device: torch.device | None = None) -> None:
        self._capacity = capacity
        self._pinned = pinned
        self._device = device
        self._bytes: Tensor | None = None
        self._used = 0

    @property
    def is_held(self) -> bool:
        """Whether its memory was taken."""
        return self._bytes is not None

    def hold(self) -> None:
        """Take the memory now: on a GPU it belongs to the stream that is open."""
        if self._bytes is not None:
            return
        if self._device is None:
            self._bytes = host_bytes(self._capacity, pinned=self._pinned)
        else:
            self._bytes = torch.empty(self._capacity, dtype=torch.uint8, device=self._device)

    def clear(self) -> None:
        """Forget what was cut; it is overwritten from now on."""
        self._used = 0

    def release(self) -> None:
        """Give the memory back, until something is cut again."""
        self._bytes = None
        self._used = 0

    def cut(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        """An uninitialised tensor in this slot, or None where it has no room left."""
        size = padded_bytes(shape, dtype)
        if self._used + size > self._capacity:
            return None
        if self._bytes is None:
            self.hold()
        assert self._bytes is not None
        piece = self._bytes[self._used : self._used + math.prod(shape) * dtype.itemsize]
        self._used += size
        return piece.view(dtype).view(tuple(shape))


def padded_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes that a tensor takes in a slot."""
    return -(-math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN


class LayerReader:
    """Reads the layers of a model in order, as often as asked.

    Args:
        model: on the meta device; its config is looked at, its weights are not.
        layers: for each layer the recipes of its weights.
        device: where the weights shall be.
        shrink: applied to the weights as they arrive, one by one, by the reading thread (quantisation); the result must
            not share memory with its argument.
        prefetch: read the next layer while the caller computes with this one.

    Attributes:
        prefetch: may be changed at any time; a second slot goes back to the system when it is turned off.
        slot_bytes: of one slot: the largest layer, or where weights shrink, the largest weight.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        plan: WeightPlan,
        layers: Sequence[Sequence[Recipe]],
        *,
        device: torch.device,
        shrink: Callable[[Weights], Weights] | None = None,
        prefetch: bool = True,
    ) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._plan = plan
        self._layers = layers
        self._device = device
        self._shrink = shrink
        self.prefetch = prefetch
        together = sum if shrink is None else max
        self.slot_bytes = max((together(map(self._slot_bytes, recipes)) for recipes in layers if recipes), default=0)
        self._shrunk_bytes = 0
        self._unseen = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # numbers not looked at yet
        self._copy_stream: CopyStream | None = None
        # Buffers that a layer is read into and copied from to the place of its use.
        self._passed: list[Slot] = []
        if kind_of(device).is_host:
            # A weight that moves on, into fewer bits, leaves its slot before the next one needs it.
            self._slots = [Slot(self.slot_bytes) for _ in range(1 if shrink is not None else 2)]
        else:
            self._copy_stream = CopyStream(device)
            self._passed = [Slot(self.slot_bytes, pinned=kind_of(device).can_pin)]
            self._slots = [Slot(self.slot_bytes, device=device) for _ in range(2 if shrink is None else 1)]

    @property
    def ahead_bytes(self) -> int:
        """Memory on the device that reading ahead takes: one more layer. Where weights shrink, of those seen so far."""
        return self.slot_bytes if self._shrink is None else self._shrunk_bytes

    @property
    def slots(self) -> list[Slot]:
        """Memory on the device that layers are in while they are used; free for others between two passes."""
        return self._slots if self.prefetch else self._slots[:1]

    @property
    def host_slots(self) -> list[Slot]:
        """Those of the slots that are main memory."""
        return self._passed or self.slots

    def layers(self, order: Sequence[int] | None = None) -> Iterator[tuple[int, Weights]]:
        """All layers in order, or those of another order: (index, weights), good until the next one is asked for.

        The caller asks for it when the device is done with this one: its memory is written again then.

        Closing the iterator early waits for the read that is under way.
        """
        if self._copy_stream is not None:
            for held in self.slots:
                held.hold()  # by this thread, which computes
            self._copy_stream.after_compute()  # what else used the slots may not be done yet
        with ThreadPoolExecutor(1, thread_name_prefix="layer-reader") as pool:
            coming: Future[Weights] | None = None
            slot = coming_slot = self._slots[0]
            order = range(len(self._layers)) if order is None else order
            for place, index in enumerate(order):
                if coming is not None:
                    weights, slot = coming.result(), coming_slot
                    coming = None
                else:  # nothing is in use just now
                    slot = self._slots[0]
                    if self._copy_stream is None or not self.prefetch:
                        for unused in self._slots[1:]:
                            unused.release()
                    weights = self._load(index, slot)
                if self.prefetch and place + 1 < len(order):
                    # Chosen here, not by the thread: prefetching may have been off or on when this layer was read.
                    coming_slot = next((other for other in self._slots if other is not slot), slot)
                    if self._copy_stream is not None:
                        coming_slot.hold()
                    coming = pool.submit(self._load, order[place + 1], coming_slot)
                yield index, weights
                del weights

    def layer(self, index: int) -> Weights:
        """One layer in memory of its own."""
        shrink = self._shrink
        if shrink is None:
            return self.read(self._layers[index])
        weights: Weights = {}
        for recipe in self._layers[index]:
            weights.update(shrink(self.read([recipe])))
        return weights

    def read(self, recipes: Sequence[Recipe]) -> Weights:
        """Read weights into memory of their own, on the device."""
        weights: Weights = {}
        for recipe in recipes:
            weights.update(self._make(recipe, None))
        return {name: tensor.to(self._device) for name, tensor in weights.items()}

    def release(self) -> None:
        """Give the slots' memory back until layers are read again."""
        for slot in (*self._slots, *self._passed):
            slot.release()

    def _load(self, index: int, slot: Slot) -> Weights:
        slot.clear()
        read_into = self._passed[0] if self._passed else slot
        read_into.clear()
        if self._shrink is None:
            made: Weights = {}
            for recipe in self._layers[index]:
                made.update(self._make(recipe, read_into))
            return self._arrived(made, slot)
        weights: Weights = {}
        for recipe in self._layers[index]:  # one by one, so that no layer is ever whole before it has shrunk
            weights.update(self._arrived(self._make(recipe, read_into), slot))
            slot.clear()
            read_into.clear()
        self._shrunk_bytes = max(self._shrunk_bytes, sum(tensor.nbytes for tensor in weights.values()))
        return weights

    def _arrived(self, weights: Weights, slot: Slot) -> Weights:
        """Weights on the device, shrunk where that is asked for."""
        shrink = self._shrink or (lambda moved: moved)
        if self._copy_stream is None:
            return shrink(weights)
        with self._copy_stream.open():
            weights = shrink({name: self._moved(tensor, slot) for name, tensor in weights.items()})
        self._copy_stream.synchronize()  # in this thread: what it came through may be overwritten from here on
        return weights

    def _moved(self, tensor: Tensor, slot: Slot) -> Tensor:
        """A tensor on the device, in its slot as far as there is room (what a converter made is not counted there)."""
        room = slot.cut(tensor.shape, tensor.dtype)
        return tensor.to(self._device, non_blocking=True) if room is None else room.copy_(tensor, non_blocking=True)

    def _make(self, recipe: Recipe, slot: Slot | None) -> Weights:
        dtype = self._plan.dtypes[recipe.targets[0]]

        def read(source: str) -> Tensor:
            shape = self._checkpoint.tensors[source].shape
            # Inputs of a conversion are allocated separately and freed after it.
            out = slot.cut(shape, dtype) if slot is not None and recipe.converter is None else None
            if out is None:
                out = torch.empty(shape, dtype=dtype)
            self._checkpoint.read(source, out)
            return out

        with torch.no_grad():
            made = recipe.convert(self._model, read)
        check_numbers(((name, made[name]) for name in made.keys() & self._unseen), self._checkpoint.folder)
        self._unseen -= made.keys()
        return made

    def _slot_bytes(self, recipe: Recipe) -> int:
        if recipe.converter is not None:
            return 0
        return padded_bytes(self._checkpoint.tensors[recipe.sources[0]].shape, self._plan.dtypes[recipe.targets[0]])
