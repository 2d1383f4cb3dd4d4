"""Ranks that each have a part of the student train the student of one process, within rounding."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.errors import EXIT_RANK_LOST
from engine.model_files.spec import read_spec
from engine.models.load import load_causal_lm
from engine.student.checkpoint import Checkpoints
from engine.student.checkpoint_writer import CheckpointWriter
from engine.student.export import export_student
from engine.student.sharded import ShardedWorld, fill
from engine.student.train import resume, save
from engine.student.trainable import WholeModel
from engine.student.world import World
from tests.engine.student.ranks import STEPS, assert_same, end_of, ended, go_on, in_ranks, training_of
from tests.engine.student.small_run import make_run, open_run
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("architecture", "world", "changes"),
    [
        ("llama", 2, {}),
        # A tied head; more ranks than the last step has rows.
        pytest.param("qwen2", 4, {"gradient_accumulation": 2}, marks=pytest.mark.slow),
        # Rows of a step, and of weights, that cannot be divided evenly.
        pytest.param("gpt2", 3, {"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_sharded_ranks_train_the_student_of_one_process(
    tmp_path: Path, architecture: str, world: int, changes: dict[str, object]
) -> None:
    changes = {"architecture": architecture, **changes}
    folders = {name: tmp_path / name for name in ("one", "many")}
    for folder in folders.values():
        make_run(folder, short=True)
    go_on(folders["one"], None, STEPS, **changes)
    many = folders["many"]
    pids = in_ranks(world, tmp_path / "store", lambda w: go_on(many, w, STEPS, **changes), kind=ShardedWorld)
    assert ended(pids) == [0] * world
    assert_same(end_of(many), end_of(folders["one"]))
    for rank in range(1, world):
        torch.testing.assert_close(end_of(many, rank), end_of(many), rtol=0, atol=0)
    events = {name: open_run(folder).read_events("metric") for name, folder in folders.items()}
    assert len(events["one"]) == STEPS
    for one, other in zip(events["one"], events["many"][::world], strict=True):
        assert other["step"] == one["step"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


Part = tuple[type[World] | None, int, int]  # the kind of ranks, their number, the step to which they train


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        [(ShardedWorld, 2, 7), (ShardedWorld, 4, 14), (None, 1, STEPS)],
        [(None, 1, 5), (ShardedWorld, 3, 10), (World, 2, 15), (ShardedWorld, 2, STEPS)],
    ],
)
def test_a_run_continues_with_other_ranks_and_another_division(tmp_path: Path, parts: list[Part]) -> None:
    folders = {name: tmp_path / name for name in ("one", "many")}
    for folder in folders.values():
        make_run(folder)
    go_on(folders["one"], None, STEPS)
    many = folders["many"]
    for number, (kind, world, steps) in enumerate(parts):
        if kind is None:
            go_on(many, None, steps)
            continue
        pids = in_ranks(world, tmp_path / f"store-{number}", lambda w, steps=steps: go_on(many, w, steps), kind=kind)
        assert ended(pids) == [0] * world
    assert_same(end_of(many), end_of(folders["one"]))


@pytest.mark.parametrize(("architecture", "bits", "world"), [("llama", 8, 3), ("qwen2", 32, 2), ("gpt2", 8, 5)])
def test_a_checkpoint_and_a_student_have_the_bytes_of_one_process(
    tmp_path: Path, architecture: str, bits: int, world: int
) -> None:
    make_run(tmp_path)
    folder = tiny_model(architecture, num_layers=2, seed=5)
    go_on(tmp_path, None, 5, architecture=architecture, bits=bits)
    one = tmp_path / "checkpoints" / "step-00000005"

    def export(model: PreTrainedModel, name: str) -> None:
        export_student(model, replace(read_spec(folder), dtype="bfloat16"), tmp_path / name, "card")

    model = load_causal_lm(folder, dtype=torch.float32)
    found = tmp_path / "checkpoints"
    latest = Checkpoints(found, keep=9, on_problem=pytest.fail).latest()
    assert latest is not None
    latest.load_weights(WholeModel(model).tensors())
    export(model, "student-of-one")

    def again(ranks: World) -> None:
        assert isinstance(ranks, ShardedWorld)
        run = open_run(tmp_path)
        training = training_of(run, architecture, world=ranks, bits=bits)
        events = run.events()
        progress = resume(training, run.checkpoints(events), Channel(events))
        assert progress is not None
        checkpoints = Checkpoints(tmp_path / "again", keep=9, on_problem=pytest.fail)
        save(training, progress, checkpoints, CheckpointWriter(lambda *written: None))
        tensors = ranks.whole(training.learner.trainable.tensors(), training.optimizer.parameters)
        with ranks.apart():
            if ranks.rank.number:
                ranks.hand_over(tensors)
                return
            whole = load_causal_lm(folder, dtype=torch.float32)
            fill(whole, tensors)
        export(whole, "student-of-ranks")

    assert ended(in_ranks(world, tmp_path / "store", again, kind=ShardedWorld)) == [0] * world
    for name in ("weights.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "checksums.json"):
        assert (tmp_path / "again" / one.name / name).read_bytes() == (one / name).read_bytes(), name
    for path in (tmp_path / "student-of-one").iterdir():
        assert (tmp_path / "student-of-ranks" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("point", ["checkpoint-optimizer", "checkpoint-before-rename", "checkpoint-renamed"])
def test_a_writer_that_is_killed_ends_the_ranks_and_leaves_a_whole_checkpoint(tmp_path: Path, point: str) -> None:
    make_run(tmp_path)

    def work(world: World) -> None:
        if world.rank.number == 0:
            os.environ["TINYDISTILL_CRASH_AT"] = f"{point}:2"
        go_on(tmp_path, world, STEPS)

    codes = ended(in_ranks(2, tmp_path / "store", work, kind=ShardedWorld))
    assert codes == [-signal.SIGKILL, EXIT_RANK_LOST]
    latest = Checkpoints(tmp_path / "checkpoints", keep=9, on_problem=pytest.fail).latest()
    assert latest is not None
    assert latest.step == (5 if point == "checkpoint-renamed" else 4)  # the first is of an evaluation


def test_a_rank_without_memory_ends_the_others(tmp_path: Path) -> None:
    make_run(tmp_path)

    def work(world: World) -> None:
        class Full(PhaseControl):
            def safe_point(self) -> None:
                super().safe_point()
                if world.rank.number:
                    raise MemoryError

        go_on(tmp_path, world, STEPS, Full())

    assert ended(in_ranks(2, tmp_path / "store", work, kind=ShardedWorld)) == [EXIT_RANK_LOST, 1]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_vocabulary_is_gathered_for_no_longer_than_it_is_used(tmp_path: Path, architecture: str) -> None:
    run = make_run(tmp_path)
    batch, _ = run.source.micro_batch("train", [0, 1])
    tiny_model(architecture, num_layers=2, seed=5)

    def work(world: World) -> None:
        learner = training_of(open_run(tmp_path), architecture, world=world).learner
        matrices = [learner.model.get_input_embeddings().weight, learner.model.get_output_embeddings().weight]
        assert all(isinstance(matrix, DTensor) for matrix in matrices)
        states = learner.hidden_states(batch)
        inputs, outputs = learner.model.get_input_embeddings(), learner.model.get_output_embeddings()
        is_tied = architecture == "qwen2"
        assert [isinstance(module.weight, DTensor) for module in (inputs, outputs)] == [not is_tied] * 2
        learner.loss(states, batch, objective=run.objective, chunk_tokens=16, scale=1.0).loss.backward()
        assert isinstance(inputs.weight, DTensor)
        assert isinstance(outputs.weight, DTensor)
        assert len(outputs.weight.grad.to_local()) < len(outputs.weight)

    assert ended(in_ranks(2, tmp_path / "store", work, kind=ShardedWorld)) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_in_half_precision_the_losses_are_those_of_one_process(
    tmp_path: Path, architecture: str, gradient_checkpointing: bool
) -> None:
    changes = {
        "architecture": architecture,
        "dtype": torch.bfloat16,
        "gradient_checkpointing": gradient_checkpointing,
        "micro_batch": 2,
        "gradient_accumulation": 3,
        "bits": 8,
    }
    for name in ("one", "many"):
        make_run(tmp_path / name)
    go_on(tmp_path / "one", None, 8, **changes)
    many = tmp_path / "many"
    pids = in_ranks(2, tmp_path / "store", lambda world: go_on(many, world, 8, **changes), kind=ShardedWorld)
    assert ended(pids) == [0, 0]
    one, other = (open_run(tmp_path / name).read_events("metric") for name in ("one", "many"))
    assert [event["loss"] for event in other[::2]] == pytest.approx([event["loss"] for event in one], rel=2e-2)
