"""Ranks as forked processes, and a training that they share; new interpreters would import torch for seconds."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.errors import EXIT_RANK_LOST, RankLost, Stopped
from engine.models.load import load_causal_lm
from engine.ranks import LIMIT, MEETING, all_ranks
from engine.student.adapter import LowRankAdapter
from engine.student.learner import Learner
from engine.student.sharded import ShardedLearner, ShardedWorld
from engine.student.train import Progress, Training, resume, train
from engine.student.world import ONE_PROCESS, World
from tests.engine.student.small_run import SmallRun, open_run
from tests.tiny import tiny_model

STEPS = 20


def in_ranks(
    world: int, meeting: Path, work: Callable[[World], None], seconds: float = 60, kind: type[World] = World
) -> list[int]:
    """Start the ranks; returns their process ids."""
    tiny_model("llama", num_layers=2, seed=5)  # ranks other than 0 would write one without its config.json
    environment = {MEETING: f"file://{meeting}", LIMIT: str(seconds), "GLOO_SOCKET_IFNAME": "lo"}
    pids = []
    for rank in all_ranks(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                gc.freeze()
                os.environ.update(environment)
                work(kind.join(rank, environment))
                code = 0
            except RankLost:
                code = EXIT_RANK_LOST
            except Stopped:
                code = Stopped.exit_code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def ended(pids: list[int]) -> list[int]:
    """The exit codes of processes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def training_of(
    run: SmallRun,
    architecture: str = "llama",
    steps: int = STEPS,
    world: World | None = None,
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    frozen: Callable[[Path], Learner] | None = None,
    **changes: object,
) -> Training:
    """A training without dropout, of a whole student, of one that the ranks have divided, or of an adapter.

    ``frozen`` makes the student with an adapter out of a model's folder.
    """
    folder = tiny_model(architecture, num_layers=2, seed=5)
    if frozen is not None:
        learner = frozen(folder)
    elif isinstance(world, ShardedWorld):
        model = load_causal_lm(folder, dtype=torch.float32)
        learner = ShardedLearner(model, dtype=dtype, gradient_checkpointing=gradient_checkpointing, world=world)
    else:
        learner = run.learner(folder, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
    for module in learner.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    values = {"micro_batch": 4, "gradient_accumulation": 1, "steps": steps, "checkpoint_every": 5} | changes
    return replace(run.training(learner, **values), world=world or ONE_PROCESS)


def go_on(
    folder: Path, world: World | None, steps: int, control: PhaseControl | None = None, **changes: object
) -> None:
    """Train to a step and keep the weights of each rank."""
    run = open_run(folder)
    training = training_of(run, steps=STEPS, world=world, **changes)
    # The schedule is that of the whole run, wherever this part of it ends.
    order = replace(training.order, total_rows=steps * training.order.effective_batch)
    training = replace(training, order=order)
    events = run.events()
    checkpoints = run.checkpoints(events)
    channel = Channel(events, control)
    progress = resume(training, checkpoints, channel) or Progress()
    train(training, progress, checkpoints, channel)
    keep_weights(training, folder)


def keep_weights(training: Training, folder: Path) -> None:
    """Write the trained weights of each rank, whole."""
    trained = training.learner.trainable
    found = trained.tensors() if isinstance(trained, LowRankAdapter) else training.learner.model.state_dict()
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in found.items()}
    torch.save(whole, folder / f"end-{training.rank.number}.pt")


def end_of(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    """Read the weights that :func:`keep_weights` wrote."""
    found: dict[str, torch.Tensor] = torch.load(folder / f"end-{rank}.pt", weights_only=True)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Within 1e-4 of each tensor's norm, a thousandth of the way that it went.

    Gradients are added in another order, and AdamW makes a step of a gradient that is next to nothing. A bias of the
    keys changes no attention: its gradient is rounding alone, which AdamW makes as large as any other.
    """
    for name, tensor in expected.items():
        ours = found[name]
        if name.endswith("k_proj.bias"):
            continue
        if name.endswith("c_attn.bias"):
            ours, tensor = (torch.cat(torch.tensor_split(bias, 3)[::2]) for bias in (ours, tensor))
        assert (ours - tensor).norm() <= 1e-4 * tensor.norm(), name
