import contextlib
import hashlib
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.record import Records
from engine.cache.store import CacheIdentity, CacheStore
from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.channel.events import EventWriter, read_events
from engine.data.packing import PackedRow, TokenisedDocument
from engine.data.tokens import TokenFile, TokenFileWriter
from engine.errors import BadNumbers, Stopped
from engine.machine.memory_watch import MemoryWatch
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from engine.ranks import ALONE, Rank
from engine.teacher.score import ScoreSettings, score
from tests.engine.data.small_data import pack
from tests.engine.models.architectures import tiny_architecture
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_model

LENGTH = 24
SIZE = 6


def token_file(path: Path, *, train: int = 11, holdout: int = 4, seed: int = 0, short: bool = True) -> Path:
    """Rows of random ids: full ones, short ones, a one-token row, a row without labels, and one text twice."""
    generator = np.random.default_rng(seed)
    with TokenFileWriter(
        path, sequence_length=LENGTH, vocab_size=VOCAB_SIZE, pad_id=1, eos_id=0, attributes={}
    ) as writer:
        for split, count in (("train", train), ("holdout", holdout)):
            rows = []
            for number in range(count):
                length = int(generator.integers(2, LENGTH)) if short and number % 3 == 2 else LENGTH
                tokens = generator.integers(2, VOCAB_SIZE, length).astype(np.int32)
                scored = np.ones(length, np.bool_)
                scored[0] = False
                if number % 4 == 1:
                    scored[: length // 2] = False
                rows.append(PackedRow(tokens, scored))
            if short and split == "train":
                rows[3] = PackedRow(rows[3].tokens[:1], rows[3].scored[:1])
                rows[5] = PackedRow(rows[5].tokens, np.zeros_like(rows[5].scored))
                rows[7] = rows[2]
            for row in rows:
                writer.add(split, row)
        writer.commit()
    return path


def a_store(path: Path, rank: int | None = None, **other) -> CacheStore:
    identity = {
        "teacher": "t", "tokenizer": "v", "chat_template": "", "temperature": 1.0, "record_size": SIZE,
        "vocab_size": VOCAB_SIZE, "seed": 3, "precision": "fp32", "quantization": "none",
    }  # fmt: skip
    return CacheStore.open(path, CacheIdentity(**(identity | other)), writable=True, rank=rank)


def run(
    teacher, tokens_path, cache_path, *, channel=None, control=None, micro_batch=2, temperature=1.0, rank=ALONE,
    store=None, **other,
):  # fmt: skip
    events = EventWriter(cache_path.with_suffix(".jsonl"))
    settings = {"wave_tokens": 4 * LENGTH, "chunk_tokens": 10, "micro_batch": micro_batch, "temperature": temperature}
    settings |= {name: other.pop(name) for name in ("wave_tokens", "chunk_tokens", "short_last_waves") if name in other}
    try:
        number = None if rank == ALONE else rank.number
        opened = store or a_store(cache_path, number, temperature=temperature)
        with TokenFile(tokens_path) as tokens, opened as store:
            return score(
                teacher=teacher,
                tokens=tokens,
                store=store,
                settings=ScoreSettings(record_size=SIZE, seed=3, **settings),
                channel=Channel(events, control) if channel is None else channel,
                rank=rank,
                **({"splits": ("train", "holdout")} | other),
            )
    finally:
        events.close()


def records_of(tokens_path, cache_path, split="train", **identity) -> Records:
    with TokenFile(tokens_path) as tokens, a_store(cache_path, **identity) as store:
        return store.fetch(tokens.hashes(split))


def files_of(cache_path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(cache_path.glob("shard-*.h5"))}


@pytest.fixture(scope="module")
def teacher():
    return ResidentTeacher(tiny_model("qwen2"), dtype=torch.float32)


class StopsAfter(PhaseControl):
    """A person who asks to stop at the n-th safe point."""

    def __init__(self, safe_points: int) -> None:
        super().__init__()
        self.left = safe_points

    def safe_point(self) -> None:
        self.left -= 1
        if self.left < 0:
            self._stop = True
        super().safe_point()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_each_record_is_of_the_teachers_distribution_for_the_token_that_follows(architecture, temperature, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5")
    teacher = ResidentTeacher(tiny_model(architecture), dtype=torch.float32)
    run(teacher, tokens_path, tmp_path / "cache", temperature=temperature)
    records = records_of(tokens_path, tmp_path / "cache", "holdout", temperature=temperature)
    model = load_causal_lm(tiny_model(architecture), dtype=torch.float32)
    place = 0
    with TokenFile(tokens_path) as tokens:
        for index in range(tokens.num_rows("holdout")):
            row = tokens.rows("holdout", [index])
            with torch.no_grad():
                logits = model(torch.from_numpy(row.tokens)).logits[0, :, :VOCAB_SIZE].double()
            for position in np.flatnonzero(row.scored[0]):
                plain = logits[position - 1].log_softmax(-1)
                tempered = (logits[position - 1] / temperature).log_softmax(-1)
                assert records.label_log_prob[place] == pytest.approx(float(plain[row.tokens[0, position]]), rel=2e-3)
                assert records.top1_id[place] == int(plain.argmax())
                assert records.entropy[place] == pytest.approx(float(-(tempered.exp() * tempered).sum()), rel=2e-3)
                heads = int(records.num_head[place])
                own = tempered[records.ids[place, :heads].astype(np.int64)]
                # A byte over [-16, 0] has steps of 0.063.
                np.testing.assert_allclose(records.head_log_probs[place, :heads], own, atol=0.065)
                place += 1
    assert place == len(records)


def test_the_cache_has_the_same_bytes_however_often_scoring_was_interrupted(teacher, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5")
    run(teacher, tokens_path, tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    assert len(expected) == 4
    for safe_points in range(1, 8):
        cache = tmp_path / f"stopped-{safe_points}"
        stops = 0
        while True:
            try:
                run(teacher, tokens_path, cache, control=StopsAfter(safe_points + 2 * stops))
                break
            except Stopped:
                stops += 1
        assert stops > 0
        assert files_of(cache) == expected, f"after {stops} stops"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streamed_and_resident_teachers_leave_the_same_bytes(architecture, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5")
    folder = tiny_model(architecture)
    resident = ResidentTeacher(folder, dtype=torch.float32)
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"))
    run(resident, tokens_path, tmp_path / "resident")
    run(streamed, tokens_path, tmp_path / "streamed")
    streamed.close()
    assert files_of(tmp_path / "resident") == files_of(tmp_path / "streamed")


def test_a_streamed_teacher_can_be_stopped_within_a_wave(tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5")
    streamed = StreamedTeacher(tiny_model("llama"), dtype=torch.float32, device=torch.device("cpu"))
    run(streamed, tokens_path, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(streamed, tokens_path, tmp_path / "stopped", control=StopsAfter(3))
    assert files_of(tmp_path / "stopped") == {}
    run(streamed, tokens_path, tmp_path / "stopped")
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_with_another_micro_batch_few_records_differ(teacher, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5", train=40)
    run(teacher, tokens_path, tmp_path / "expected", micro_batch=4)
    expected = records_of(tokens_path, tmp_path / "expected")
    for micro_batch in (1, 3):
        run(teacher, tokens_path, tmp_path / f"by-{micro_batch}", micro_batch=micro_batch)
        records = records_of(tokens_path, tmp_path / f"by-{micro_batch}")
        differing = (records.ids != expected.ids).any(1).mean()
        assert differing < 0.01, f"{differing:.1%} of the records differ"
        np.testing.assert_allclose(records.entropy, expected.entropy, atol=0.01)


class Keeping(CacheStore):
    """Remembers the records as they were before they became bytes, by document and place in it."""

    def commit(self, rows, records, places=None):
        for index, at in enumerate(zip(places.row_keys.tolist(), places.positions.tolist(), strict=True)):
            self.kept[at] = records.take(np.array([index]))
        return super().commit(rows, records, places)


def kept_records(teacher, folder: Path, documents: list[list[int]], *, length: int, packing: bool) -> dict:
    packed = pack([TokenisedDocument(ids) for ids in documents], length, eos_id=0, packing=packing)
    with TokenFileWriter(
        folder / "tokens.h5", sequence_length=length, vocab_size=VOCAB_SIZE, pad_id=1, eos_id=0, attributes={}
    ) as writer:
        for row in packed:
            writer.add("train", row)
        writer.commit()
    identity = CacheIdentity("t", "v", "", 1.0, SIZE, VOCAB_SIZE, 3, "fp32", "none")
    with (
        contextlib.closing(EventWriter(folder / "events.jsonl")) as events,
        TokenFile(folder / "tokens.h5") as tokens,
        Keeping.open(folder / "cache", identity, writable=True) as store,
    ):
        store.kept = {}
        score(
            teacher=teacher,
            tokens=tokens,
            store=store,
            splits=("train",),
            channel=Channel(events),
            settings=ScoreSettings(
                micro_batch=2, wave_tokens=4 * length, chunk_tokens=10, record_size=SIZE, temperature=1.0, seed=3
            ),
        )
        return store.kept


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "gemma2", "bloom", "opt", "mamba"])
def test_a_document_has_the_same_records_in_any_packing(architecture, tmp_path_factory):
    teacher = ResidentTeacher(tiny_architecture(architecture), dtype=torch.float32)
    generator = np.random.default_rng(2)
    documents = [generator.integers(3, VOCAB_SIZE, size).tolist() for size in (5, 21, 9, 33, 2, 14)]
    alone = kept_records(teacher, tmp_path_factory.mktemp("alone"), documents, length=100, packing=False)

    @settings(max_examples=4, deadline=None)
    @given(st.permutations(documents), st.integers(90, 127))
    def in_this_order(ordered, length):
        found = kept_records(teacher, tmp_path_factory.mktemp("packed"), ordered, length=length, packing=True)
        whole = found.keys() & alone.keys()
        assert len(whole) > len(alone) / 3, "a document that a row's end cuts is another one"
        for at in whole:
            ours, theirs = found[at], alone[at]
            assert abs(ours.label_log_prob - theirs.label_log_prob) < 1e-5 * max(1.0, abs(theirs.label_log_prob[0]))
            assert abs(ours.entropy - theirs.entropy) < 1e-4
            assert ours.top1_id == theirs.top1_id
        same = [set(found[at].ids[0]) == set(alone[at].ids[0]) for at in whole]
        assert np.mean(same) > 0.98, "draws depend on the document and the place in it"

    in_this_order()


def test_only_new_rows_are_scored_when_the_text_grows(teacher, tmp_path):
    small = token_file(tmp_path / "small.h5", train=8, holdout=0, short=False)
    large = token_file(tmp_path / "large.h5", train=12, holdout=0, short=False)
    first = run(teacher, small, tmp_path / "cache")
    second = run(teacher, large, tmp_path / "cache")
    assert (first.rows, second.rows) == (8, 4)
    again = run(teacher, large, tmp_path / "cache")
    assert (again.rows, again.tokens, again.shards) == (0, 0, 0)
    run(teacher, large, tmp_path / "at-once")
    both = [records_of(large, tmp_path / name) for name in ("cache", "at-once")]
    assert np.array_equal(both[0].ids, both[1].ids)


def test_hold_out_rows_keep_the_first_choice_and_training_rows_do_not_pay_for_it(teacher, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5")
    run(teacher, tokens_path, tmp_path / "cache")
    assert records_of(tokens_path, tmp_path / "cache", "holdout").top1_id is not None
    assert records_of(tokens_path, tmp_path / "cache", "train").top1_id is None


def test_rows_without_labels_have_records_of_no_length(teacher, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5")
    run(teacher, tokens_path, tmp_path / "cache")
    with TokenFile(tokens_path) as tokens, a_store(tmp_path / "cache") as store:
        assert store.missing(tokens.hashes("train")) == []
        assert len(store.fetch([tokens.hashes("train")[3]])) == 0
        assert len(store.fetch(tokens.hashes("train"))) == tokens.num_scored("train")


def test_events_tell_how_far_it_is_and_each_shard(teacher, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5")
    result = run(teacher, tokens_path, tmp_path / "cache")
    events = list(read_events(tmp_path / "cache.jsonl"))
    shards = [event for event in events if event["kind"] == "shard"]
    progress = [event for event in events if event["kind"] == "progress"]
    assert sum(event["tokens"] for event in shards) == result.tokens
    assert {event["path"] for event in shards} == set(files_of(tmp_path / "cache"))
    with TokenFile(tokens_path) as tokens:
        total = tokens.num_scored("train") + tokens.num_scored("holdout")
    assert progress[-1]["done"] == progress[-1]["total"] == total
    assert progress[-1]["rate"] > 0
    assert [event["done"] for event in progress] == sorted(event["done"] for event in progress)


def test_no_matrix_of_all_logits_is_made(teacher, tmp_path, monkeypatch):
    # The original kept [tokens, vocab] for the whole batch: 100 kB a token.
    largest = 0
    own = teacher.logits

    def logits(hidden_states):
        nonlocal largest
        largest = max(largest, len(hidden_states))
        return own(hidden_states)

    monkeypatch.setattr(teacher, "logits", logits)
    run(teacher, token_file(tmp_path / "tokens.h5"), tmp_path / "cache", micro_batch=4, chunk_tokens=10)
    assert largest == 10


def test_a_teacher_that_gives_no_numbers_stops_the_run_and_leaves_what_was_done(tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "broken")
    teacher = ResidentTeacher(folder, dtype=torch.float32)
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight[5] = float("nan")
    tokens_path = token_file(tmp_path / "tokens.h5")
    with pytest.raises(BadNumbers):
        run(teacher, tokens_path, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == {}


def test_short_memory_makes_shorter_waves_and_the_same_records(tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5", train=16, short=False)
    channel = Channel(EventWriter(tmp_path / "relief.jsonl"))
    free = iter([2**30, 2**30, *[1] * 24, *[2**30] * 10_000])  # short within the first wave and into the second
    seconds = iter(range(10_000))
    watch = MemoryWatch(2**30, lambda: next(free), lambda: next(seconds))
    teacher = StreamedTeacher(tiny_model("llama"), dtype=torch.float32, device=torch.device("cpu"), check=False)
    with channel.saving_memory(teacher, also="the next waves are half as long", watch=watch):
        squeezed = run(teacher, tokens_path, tmp_path / "squeezed", wave_tokens=8 * LENGTH, channel=channel)
    logged = [event for event in read_events(tmp_path / "relief.jsonl") if event["kind"] == "log"]
    assert [event["code"] for event in logged] == ["memory-short", "memory-room"]
    assert teacher.prefetch
    plain = run(teacher, tokens_path, tmp_path / "plain", wave_tokens=8 * LENGTH)
    for split in ("train", "holdout"):
        one, other = (records_of(tokens_path, tmp_path / name, split) for name in ("squeezed", "plain"))
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.head_log_probs, other.head_log_probs)
    assert (squeezed.rows, squeezed.tokens) == (plain.rows, plain.tokens)
    assert squeezed.shards == plain.shards + 1


def same_records(one: Records, other: Records) -> bool:
    """Whether every number of every record is the same, bit for bit."""
    names = [field.name for field in fields(Records)]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("world", [2, 5])
@pytest.mark.parametrize("streamed", [False, True])
def test_any_number_of_ranks_leaves_the_records_of_one_process_bit_for_bit(teacher, world, streamed, tmp_path):
    tokens_path = token_file(tmp_path / "tokens.h5", train=40, holdout=9)
    waves = {"wave_tokens": 8 * LENGTH, "short_last_waves": not streamed}
    run(teacher, tokens_path, tmp_path / "one", **waves)
    scorer = teacher
    if streamed:
        scorer = StreamedTeacher(tiny_model("qwen2"), dtype=torch.float32, device=torch.device("cpu"), check=False)
    stores = [a_store(tmp_path / "many", number) for number in range(world)]  # none sees what another one scores
    results = [
        run(scorer, tokens_path, tmp_path / "many", rank=Rank(number, world), store=store, **waves)
        for number, store in enumerate(stores)
    ]
    for split in ("train", "holdout"):
        assert same_records(*(records_of(tokens_path, tmp_path / name, split) for name in ("one", "many")))
    with TokenFile(tokens_path) as tokens:
        distinct = len(set(tokens.hashes("train"))) + len(set(tokens.hashes("holdout")))
    assert sum(result.rows for result in results) == distinct, "every row is scored once"
    assert all(result.shards for result in results), "every rank has work"


@settings(max_examples=10, deadline=None)
@given(
    world=st.integers(1, 7),
    later=st.integers(1, 7),
    order=st.randoms(use_true_random=False),
    rows_in_wave=st.integers(1, 9),
    short=st.booleans(),
    lost=st.sets(st.integers(0, 6)),
)
def test_whatever_ranks_score_and_lose_the_union_is_every_row_once(
    teacher, tmp_path_factory, world, later, order, rows_in_wave, short, lost
):
    folder = tmp_path_factory.mktemp("ranks")
    tokens_path = token_file(folder / "tokens.h5", train=15, holdout=5)
    wave_tokens = rows_in_wave * LENGTH
    stores = [a_store(folder / "cache", number) for number in range(world)]  # none sees what another one scores
    numbers = list(enumerate(stores))
    order.shuffle(numbers)
    for number, store in numbers:  # a rank may end before any of its waves
        rank, control = Rank(number, world), StopsAfter(number) if number in lost else None
        with contextlib.suppress(Stopped):
            run(
                teacher, tokens_path, folder / "cache", rank=rank, store=store, control=control,
                wave_tokens=wave_tokens, short_last_waves=short,
            )  # fmt: skip
    for number in range(later):  # the job is started again, with another number of ranks
        run(
            teacher,
            tokens_path,
            folder / "cache",
            rank=Rank(number, later),
            wave_tokens=wave_tokens,
            short_last_waves=short,
        )
    with TokenFile(tokens_path) as tokens, a_store(folder / "cache") as store:
        hashes = {split: tokens.hashes(split) for split in ("train", "holdout")}
        assert store.missing(hashes["train"]) == []
        assert store.missing(hashes["holdout"], top1=True) == []
        assert sum(entry.rows for entry in store.entries) == len(set(hashes["train"])) + len(set(hashes["holdout"]))
