"""The ranks of a training: sums, agreements and messages between them, by torch.distributed.

Each rank has the whole student, or a frozen student and its whole adapter, and takes a share of the rows of every step.
The gradients are added up once in a step, after all of its micro-batches. (torch's DistributedDataParallel does the
same; it cannot be used, as it does not see the gradient of the lm_head, which the loss computes chunk by chunk outside
of autograd.)

A rank that is gone is noticed at once, one that does not answer after a limit. A rank that works by itself, such as
one that writes a checkpoint, answers meanwhile (:meth:`World.apart`).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.errors import RankLost
from engine.machine.out_of_memory import is_out_of_memory
from engine.machine.torch_device import exact
from engine.ranks import ALONE, MEETING, Rank, limit_seconds
from engine.student.parts import Stored

LIMIT_SECONDS = 300.0
"""How long a rank waits for another one in a step."""
STREAMED_LIMIT_SECONDS = 1800.0
"""The limit where the student is streamed: its step takes minutes, and a rank without rows waits for all of it."""
Result = TypeVar("Result")

_ANSWER_SECONDS = 1.0  # between two answers of a rank that works by itself
_BUCKET_ELEMENTS = 2**23  # of float32: 32 MiB, as engine.planner.moments.BUCKET_BYTES


class World:
    """The ranks that train together.

    Attributes:
        is_sharded: whether each rank has a part of the student, and of every pass they do a part together.
        rank: this process's.
        seconds: how long a rank waits for another one.
        loss_factor: on the loss of each rank, so that the gradients of all ranks add up.
    """

    is_sharded = False

    def __init__(self, rank: Rank, seconds: float = LIMIT_SECONDS) -> None:
        self.rank = rank
        self.seconds = seconds
        self.loss_factor = 1.0
        self._answering: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, rank: Rank, environment: Mapping[str, str], seconds: float = LIMIT_SECONDS) -> Self:
        """Meet the other ranks, where the supervisor says.

        Args:
            rank: this process's.
            environment: of this process; the limit in it goes before ``seconds``.
            seconds: how long a rank waits for another one.

        Raises:
            RequestError: the limit in the environment is no time.
            RankLost: they did not come.
        """
        world = cls(rank, limit_seconds(environment) or seconds)
        with world.answers():
            limit = datetime.timedelta(seconds=world.seconds)
            dist.init_process_group(
                "gloo",
                init_method=environment[MEETING],
                rank=rank.number,
                world_size=rank.world,
                timeout=limit,
            )
            # Of its own, for a thread talks by it while the main one may talk by the other.
            world._answering = dist.new_group(timeout=limit, backend="gloo")
        return world

    def leave(self) -> None:
        """Close the connections."""
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Within this, each rank works by itself; at its end it waits for the others, however long they take.

        A thread of each rank answers the others meanwhile. All ranks have to enter it together.

        Raises:
            RankLost: a rank has ended, or its thread does not answer.
        """
        self._begin_to_answer()
        try:
            yield
        except BaseException:
            self._answers.cease()
            raise
        with self.answers():
            self._answers.end()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within :meth:`apart`, do something with the other ranks; it begins when all are here."""
        with self.answers():
            self._answers.end()
        yield
        self._begin_to_answer()

    def _begin_to_answer(self) -> None:
        self._answers = _Answers(self._answering, min(_ANSWER_SECONDS, self.seconds / 4))

    def agree(self, requests: int) -> int:
        """Return the requests, one bit each, of all ranks together."""
        bits = torch.tensor([requests >> place & 1 for place in range(8)], dtype=torch.uint8)
        with self.answers():
            dist.all_reduce(bits, dist.ReduceOp.MAX)
        return sum(int(bit) << place for place, bit in enumerate(bits.tolist()))

    def of_first(self, value: int) -> int:
        """Return rank 0's value on each rank."""
        told = torch.tensor([value], dtype=torch.int64)
        with self.answers():
            dist.broadcast(told, 0)
        return int(told[0])

    def gathered(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks."""
        found: list[Any] = [None] * self.rank.world
        with self.answers():
            dist.all_gather_object(found, value)
        return found

    def passing(self) -> contextlib.AbstractContextManager[None]:
        """For a pass of the student, in which sharded ranks need each other."""
        return self.answers(in_pass=True)

    def led(
        self, ask: Callable[[Tensor], Tensor], work: Callable[[Callable[[Tensor], Tensor]], Result]
    ) -> Result | None:
        """Let rank 0 do some work, and all ranks together what it asks for meanwhile.

        Args:
            ask: what all ranks do together, from an int64 tensor of rank 0.
            work: rank 0's, which is given ``ask``.

        Returns:
            The work's result on rank 0; None on the others.
        """
        if self.rank.number == 0:

            def together(asked: Tensor) -> Tensor:
                self._told(asked)
                with self.passing():
                    return ask(asked)

            result = work(together)
            self._told(None)
            return result
        while (asked := self._told(None)) is not None:
            with self.passing():
                ask(asked)
        return None

    def _told(self, value: Tensor | None) -> Tensor | None:
        told = [value]
        with self.answers():
            dist.broadcast_object_list(told, 0)
        return told[0]

    def add_up(self, sums: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Add up some sums and the gradients of all ranks; all have the same numbers afterwards, bit for bit.

        A parameter that has a gradient on one rank has one on all of them; this rank's may have been of no rows.

        Args:
            sums: float64 [N].
            parameters: in the same order on all ranks; their gradients are changed in place.

        Returns:
            The sums over all ranks.
        """
        parameters = list(parameters)
        has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=sums.dtype)
        together = torch.cat([sums.cpu(), has_gradient])
        with self.answers():
            dist.all_reduce(together)
        gradients = []
        for parameter, count in zip(parameters, together[len(sums) :].tolist(), strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            self._add_up(bucket)
        return together[: len(sums)].to(sums.device)

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients of a step, after :meth:`add_up`."""
        return exact(torch.nn.utils.get_total_norm(gradients))

    def whole(self, tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Parameter]) -> Mapping[str, Stored]:
        """Return tensors as rank 0 can write them: they are whole on each rank."""
        return tensors

    def hand_over(self, tensors: Mapping[str, Stored]) -> None:
        """Give rank 0 what it does not have: nothing."""

    def _add_up(self, gradients: list[Tensor]) -> None:
        if len(gradients) == 1 and gradients[0].is_contiguous():
            with self.answers():
                dist.all_reduce(gradients[0])
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with self.answers():
            dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    @contextlib.contextmanager
    def answers(self, *, in_pass: bool = False) -> Iterator[None]:
        """Reports a missing rank, while the context is open.

        Args:
            in_pass: other things than collectives are done too, which have errors of their own.

        Raises:
            RankLost: another rank has ended, or does not answer.
        """
        try:
            yield
        except RuntimeError as error:  # gloo has no class of its own for a closed connection or its time limit
            if is_out_of_memory(error) or (in_pass and "gloo" not in str(error)):
                raise
            raise RankLost(
                f"Rank {self.rank.number} of {self.rank.world} (process {os.getpid()}) misses another rank: it has "
                f"ended, or has not answered for {self.seconds:g} s ({str(error).strip().splitlines()[0][:200]}).",
                "The ranks of a training need each other in every step.",
                "",
            ) from error


class _Answers:
    """The answers of a rank that works by itself: a thread that meets those of the other ranks until all are done.

    Args:
        group: the ranks.
        seconds: between two of them.
    """

    def __init__(self, group: dist.ProcessGroup | None, seconds: float) -> None:
        self._group = group
        self._seconds = seconds
        self._is_done = threading.Event()
        self._has_failed = False
        self._error: RuntimeError | None = None
        self._thread = threading.Thread(target=self._answer, name="answer-ranks", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait until every rank is done.

        Raises:
            RuntimeError: gloo's, about a rank that has ended or does not answer.
        """
        self._is_done.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def cease(self) -> None:
        """Answer no more: this rank has failed, and the others hear of it when it ends."""
        self._has_failed = True
        self._is_done.set()

    def _answer(self) -> None:
        try:
            while not self._has_failed:
                works = torch.tensor([not self._is_done.is_set()], dtype=torch.uint8)
                dist.all_reduce(works, dist.ReduceOp.MAX, group=self._group)
                if not works.item():
                    return
                self._is_done.wait(self._seconds)
        except RuntimeError as error:
            self._error = error


class OneProcess(World):
    """A training of one process, which has no one to ask: each question has its own answer."""

    def __init__(self) -> None:
        super().__init__(ALONE)

    def leave(self) -> None:
        """Nothing is open."""

    def agree(self, requests: int) -> int:
        """Return the requests."""
        return requests

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Nothing: no other process waits."""
        yield

    def of_first(self, value: int) -> int:
        """Return the value."""
        return value

    def gathered(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def add_up(self, sums: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Return the sums where they are: moving them would make the CPU wait for the device."""
        return sums

    @contextlib.contextmanager
    def answers(self, *, in_pass: bool = False) -> Iterator[None]:
        """Nothing: no other process has to answer."""
        yield


ONE_PROCESS = OneProcess()


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group gradients of one dtype, so that few calls send many small ones."""
    bucket: list[Tensor] = []
    elements = 0
    for gradient in gradients:
        if bucket and (elements + gradient.numel() > _BUCKET_ELEMENTS or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, elements = [], 0
        bucket.append(gradient)
        elements += gradient.numel()
    if bucket:
        yield bucket
