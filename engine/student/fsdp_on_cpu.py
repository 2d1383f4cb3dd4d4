"""torch's FSDP2 on CPUs, in each release of torch that this program works with.

It is written for devices with streams. Releases since 2.6 miss different pieces of it on the CPU, where there is one
stream and nothing to wait for: this file adds the missing ones, where they are missing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


@functools.cache
def _repair() -> None:
    """Add the pieces that this release of torch does not have."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups

    stream: Any = torch.cpu.Stream
    if not hasattr(stream, "record_event"):  # torch 2.6
        stream.record_event = lambda self, event=None: torch.cpu.Event()
        stream.wait_event = lambda self, event: None
    module: Any = groups
    copy_out = module.foreach_all_gather_copy_out
    if "version_counter(tuple(" in inspect.getsource(copy_out):
        return

    def without_counting(result: Any, parameters: Any, *args: Any) -> None:
        # Gathering weights again in the backward pass is no change of them, but torch 2.6 counts it as one on a CPU.
        copy_out(result, parameters, *args)
        for parameter in parameters:
            for gathered in parameter.all_gather_outputs:
                set_version(gathered, 0)

    set_version: Any = torch._C._autograd._unsafe_set_version_counter
    module.foreach_all_gather_copy_out = without_counting


def shard(root: nn.Module, modules: Iterable[nn.Module], *, only_forward: Iterable[nn.Module] = ()) -> None:
    """Divide the parameters of a module among all ranks; they become DTensors.

    Those of ``modules`` are gathered when they are used, and freed after it. The others stay gathered from the forward
    pass to the end of the backward pass.

    Args:
        root: on the CPU; its forward is called.
        modules: in it.
        only_forward: those of them (or the root) whose backward pass does not read their parameters.
    """
    from torch.distributed.fsdp import fully_shard

    _repair()
    # The group that the ranks have, with its limit on waiting: a mesh of its own might get another.
    group = dist.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, "cpu")
    for module in modules:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)
    for module in only_forward:
        as_fsdp(module).set_unshard_in_backward(False)


def as_fsdp(module: nn.Module) -> FSDPModule:
    """A module that :func:`shard` has divided, with what FSDP2 adds to it."""
    found: Any = module
    return found


def mean_of_ones(world: int) -> float:
    """The mean of a one from each rank, by this release of gloo: torch 2.6 adds up and does not divide."""
    told = torch.zeros(1)
    # Its name before torch 2.13.
    reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(told, torch.ones(world), op=dist.ReduceOp.AVG)
    return float(told)
