"""Predicted bytes on disk against the files that are really written."""

import pydoc_data.topics
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.cache.id_layout import flag_bits, uniform_widths
from engine.cache.record import COLUMNS, Records, encode
from engine.data.packing import PackedRow
from engine.data.tokens import TokenFileWriter
from engine.model_files.demo import DEMO_TEACHER
from engine.planner import disk
from engine.planner.phase_settings import StudentSetting
from engine.teacher.sampling import draw_records
from tests.engine.cache.some_records import some_places
from tests.engine.planner.machines import PYTHIA_70M


@pytest.mark.parametrize("vocab_size", [2, 320, 50_304, 151_936, 262_144])
@pytest.mark.parametrize("record_size", [1, 12, 50, 255])
def test_no_record_is_predicted_to_take_more_than_any_ids_do(record_size: int, vocab_size: int) -> None:
    size = min(record_size, vocab_size)
    widths = uniform_widths(size, vocab_size)
    any_ids = (flag_bits(size, len(widths)) + size * widths[0]) / 8
    assert disk.record_bytes(record_size, vocab_size) - size / 4 - 3 <= any_ids


@pytest.mark.parametrize("record_size", [12, *(pytest.param(size, marks=pytest.mark.slow) for size in (6, 24))])
def test_records_of_text_take_what_was_predicted(record_size: int) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(DEMO_TEACHER)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_TEACHER)
    text = [text[:1_500] for text in pydoc_data.topics.topics.values()]
    ids = torch.tensor(tokenizer(" ".join(text[:60]))["input_ids"])[: 16 * 128].view(-1, 128)
    with torch.no_grad():
        log_probs = teacher(ids).logits.float().log_softmax(-1).flatten(0, 1)
    chance = torch.rand(len(log_probs), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw_records(log_probs, record_size=record_size, uniforms=chance)
    records = Records(
        ids=drawn.ids.int().numpy(),
        num_head=drawn.num_head.to(torch.uint8).numpy(),
        head_log_probs=drawn.head_log_probs.numpy(),
        tail_mass=drawn.tail_mass.numpy(),
        label_log_prob=drawn.top1_log_prob.numpy(),
        entropy=drawn.entropy.numpy(),
    )
    encoded = encode(records, log_probs.shape[1], some_places(len(records)), [128] * len(ids))
    taken = sum(getattr(encoded, name).nbytes for name in COLUMNS if getattr(encoded, name) is not None)
    taken += encoded.layout.to_bytes().nbytes
    predicted = len(records) * disk.record_bytes(record_size, log_probs.shape[1])
    assert 0.9 < predicted / taken < 1.12


@pytest.mark.parametrize("vocab_size", [320, 50_304])
def test_the_token_file_is_at_most_what_was_predicted(tmp_path: Path, vocab_size: int) -> None:
    length, rows = 128, 1_000
    scored = np.arange(length) > 0
    path = tmp_path / "tokens.h5"
    generator = np.random.default_rng(0)
    with TokenFileWriter(
        path, sequence_length=length, vocab_size=vocab_size, pad_id=0, eos_id=0, attributes={}
    ) as writer:
        for _ in range(rows):
            writer.add("train", PackedRow(generator.integers(0, vocab_size, length, dtype=np.int32), scored))
        writer.commit()
    assert 1.0 <= disk.tokens_bytes(rows * length, vocab_size) / path.stat().st_size * 1.1 < 1.3


def test_checkpoints_to_keep_the_best_and_the_one_being_written_all_count() -> None:
    one = disk.checkpoint_bytes(PYTHIA_70M.parameters, "adamw")
    assert one == 12 * PYTHIA_70M.parameters
    sizes = [
        disk.run_bytes(
            tokens=10**6,
            record_size=12,
            vocab_size=50_304,
            student=PYTHIA_70M,
            setting=StudentSetting(1, 1, 512, "fp32", checkpointing=False, optimizer="adamw"),
            keep_checkpoints=keep,
            is_cut=False,
        )
        for keep in (1, 2)
    ]
    assert sizes[1] - sizes[0] == one
    assert sizes[0] > 3 * one
