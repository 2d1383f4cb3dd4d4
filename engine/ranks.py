"""Ranks: the processes that do one phase together, and how a process learns which one it is.

The names are torch's: each process has a rank from 0, and the world is how many there are. The supervisor tells its
phases by the variables that torch.distributed reads.

This file knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One of the processes that share some work.

    Attributes:
        number: from 0.
        world: how many there are.
    """

    number: int = 0
    world: int = 1

    def has(self, item: int) -> bool:
        """Whether a numbered piece of work is this rank's: they are dealt out in turn."""
        return item % self.world == self.number

    @classmethod
    def of_phase(cls, environment: Mapping[str, str]) -> Rank:
        """The rank that the supervisor gave to a phase."""
        return cls(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)))


ALONE = Rank()
