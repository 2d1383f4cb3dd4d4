"""One training of one arm with one seed, by the engine's own training loop, and what came of it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.models.load import load_causal_lm
from engine.planner.sizes import head_chunk_tokens
from engine.student.checkpoint import Checkpoints
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.schedule import Schedule
from engine.student.train import Progress, Training, look, train
from tests.benchmarks.quality.arms import DRAWS_APART, Arm, Setting
from tests.benchmarks.quality.material import ComparedSource, Material


def num_draws(arm: Arm, setting: Setting) -> int:
    """Caches that an arm reads: one, or one for each epoch that it begins."""
    return -(-setting.steps * setting.batch // setting.rows) if arm.fresh else 1


def draw_seed(seed: int, draw: int) -> int:
    """The seed of a cache's draws; that of the first is the training's."""
    return seed + DRAWS_APART * draw


def train_arm(setting: Setting, material: Material, arm: Arm, seed: int) -> dict[str, float]:
    """Train and measure on the hold-out, exactly: with the teacher's whole distribution."""
    stores = [material.store(arm.kind, arm.size, draw_seed(seed, draw)) for draw in range(num_draws(arm, setting))]
    torch.manual_seed(seed)
    model = load_causal_lm(material.student, dtype=torch.float32)
    learner = Learner(model, dtype=getattr(torch, setting.precision), gradient_checkpointing=False)
    order = Order.plan(
        num_rows=material.tokens.num_rows("train"),
        micro_batch=setting.batch,
        gradient_accumulation=1,
        seed=seed,
        steps=setting.steps,
    )
    training = Training(
        learner=learner,
        optimizer=AdamW(learner.model.named_parameters(), weight_decay=0.01, bits=32),
        source=ComparedSource(material, stores, full=arm.records == "full"),
        order=order,
        schedule=Schedule(setting.learning_rate, order.total_steps),
        objective=Objective(material.tokens.vocab_size, arm.target, arm.kd_weight, 1.0),
        clip_norm=1.0,
        chunk_tokens=head_chunk_tokens(material.tokens.vocab_size),
        checkpoint_every=order.total_steps,
        evaluation_rows=1,  # the looks on the way are not used
    )
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        events = EventWriter(Path(folder) / "events.jsonl")
        checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=1, on_problem=lambda problem: None)
        train(training, Progress(), checkpoints, Channel(events))
    metrics = look(training)
    return {**metrics.as_dict(), "processor_seconds": time.process_time() - began}
