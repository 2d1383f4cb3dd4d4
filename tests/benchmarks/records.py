"""How many bytes does a record take, what does each step of its encoding buy, and is the encoding ever the bottleneck?

    python -m tests.benchmarks.records [--out tests/benchmarks/results/records.json]

Records are made by chance with the number of heads that real text has (a quarter of the ids), or all but one for exact
ids, and with ids by Zipf's law: the n-th most frequent one in proportion to 1/n. (SmolLM2's on text are steeper.) Where
any id could be any, they take what stands one line above in the steps. Speed is of one core, warm, in batches of 4,096
positions; median of 30, in processor time. Bytes are those of training rows of 512 tokens, eight to a shard; a hold-out
record has 8 more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from engine.cache.id_layout import flag_bits, uniform_widths
from engine.cache.identity import CacheIdentity
from engine.cache.record import Places, Records, decode, encode
from engine.cache.store import CacheStore

VOCABULARIES = (32_000, 50_304, 151_936, 262_144)
SIZES = (4, 6, 8, 12, 16, 20, 24)
EXACT = (12, 11)  # ids and heads of a cache of exact ids
BATCH = 4_096
ROW = 512
HEADS = 3  # of 12 ids
REPEATS = 30
# Published figures, bytes a token: DistillKit 1.0 (50 ids; "budget" mode), RS-KD (12 unique ids, 100k vocabulary).
_PARTS = {
    "ids": "ids, heads marked",
    "layout": "ids, heads marked",
    "head_log_probs": "log-probs of heads",
    "tail_mass": "tail, label, entropy",
    "label_log_prob": "tail, label, entropy",
    "entropy": "tail, label, entropy",
    "rows": "rows and headers",
}
PUBLISHED = {"DistillKit": (312, 344), "DistillKit, budget": (114, 127), "RS-KD": (36, 36)}


def some_records(num: int, size: int, heads: int, vocab_size: int) -> Records:
    """Records with some heads each, falling, and ids by Zipf's law; which id is how frequent is chance."""
    random = np.random.default_rng(0)
    names = random.permutation(vocab_size).astype(np.int32)
    to = (1.0 / np.arange(1, vocab_size + 1)).cumsum()
    drawn = names[np.searchsorted(to, random.random((num, 20 * size)) * to[-1])]
    ids = np.array([list(dict.fromkeys(row))[:size] for row in drawn.tolist()])
    is_head = np.arange(size) < heads
    ids = np.where(is_head, ids, np.sort(np.where(is_head, -1, ids), axis=1))
    shares = np.sort(random.dirichlet(np.full(size, 0.3), num), axis=1)[:, ::-1] * 0.7
    log_probs = np.where(is_head, np.log(shares.clip(1e-6)), -np.inf).astype(np.float32)
    return Records(
        ids=ids.astype(np.int32),
        num_head=np.full(num, heads, np.uint8),
        head_log_probs=log_probs,
        tail_mass=(1 - np.exp(log_probs).sum(1)).astype(np.float32),
        label_log_prob=-random.exponential(2.5, num).astype(np.float32),
        entropy=random.uniform(0, 7, num).astype(np.float32),
    )


def steps_of_the_encoding(size: int, vocab_size: int) -> dict[str, float]:
    """Bytes of a record as one thing after another is packed; figures are tail mass, label and entropy."""
    plain_id_bits = math.ceil(math.log2(vocab_size))
    uniform = uniform_widths(size, vocab_size)
    set_bytes = (flag_bits(size, len(uniform)) + size * uniform[0]) / 8
    records = some_records(BATCH, size, HEADS, vocab_size)
    encoded = encode(records, vocab_size, _some_places(), [ROW] * (BATCH // ROW))
    by_frequency = encoded.ids.nbytes + encoded.layout.to_bytes().nbytes
    return {
        "every logit, float16": 2.0 * vocab_size,
        "k ids (int32), weights (float16), figures (float32)": size * 6 + 12,
        "weights of heads alone, and how many": size * 4 + 2 * HEADS + 1 + 12,
        "ids in as many bits as they need": math.ceil(size * plain_id_bits / 8) + 2 * HEADS + 1 + 12,
        "a byte for a log-prob, two for a figure": math.ceil(size * plain_id_bits / 8) + HEADS + 1 + 6,
        "ids as a set, heads marked in it": set_bytes + HEADS + 6,
        "a byte for a figure": set_bytes + HEADS + 3,
        "frequent ids in fewer bits": by_frequency / BATCH + HEADS + 3,
    }


def measure(size: int, vocab_size: int, heads: int) -> dict[str, Any]:
    """Bytes a token on the disk, and speeds."""
    records = some_records(BATCH, size, heads, vocab_size)
    places, counts = _some_places(), [ROW] * (BATCH // ROW)
    encoded = encode(records, vocab_size, places, counts)
    encode_seconds = _median_seconds(lambda: encode(records, vocab_size, places, counts))
    decode_seconds = _median_seconds(lambda: decode([encoded], size).weights())
    parts, fetch_seconds = _through_the_store(records, size, vocab_size)
    return {
        "record_size": size,
        "heads": heads,
        "vocab_size": vocab_size,
        "bytes_per_token": sum(parts.values()),
        "parts": parts,
        "encode_tokens_per_second": BATCH / encode_seconds,
        "decode_tokens_per_second": BATCH / decode_seconds,
        "fetch_seconds_8x512": fetch_seconds,
    }


def _some_places() -> Places:
    return Places(0, np.full(BATCH, 7, np.uint64), np.arange(BATCH))


def _through_the_store(records: Records, size: int, vocab_size: int) -> tuple[dict[str, float], float]:
    identity = CacheIdentity("", "", "", 1.0, size, vocab_size, 0, "fp32", "none")
    names = [number.to_bytes(16, "little") for number in range(4 * BATCH // ROW)]
    rows = BATCH // ROW
    with tempfile.TemporaryDirectory() as folder, CacheStore.open(Path(folder), identity, writable=True) as store:
        for start in range(0, len(names), rows):
            store.commit([(name, ROW) for name in names[start : start + rows]], records)
        seconds = _median_seconds(lambda: store.fetch(names[3::4][:rows]))
        found: Counter[str] = Counter()
        for entry in store.entries:
            sizes = store.shard(entry).column_bytes()
            for name, num_bytes in sizes.items():
                found[_PARTS[name]] += num_bytes
            found["rows and headers"] += entry.bytes - sum(sizes.values())
        return {name: num_bytes / store.num_tokens for name, num_bytes in found.items()}, seconds


def _median_seconds(action: Callable[[], object]) -> float:
    action()
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return median(found)


def main() -> None:
    """Print the tables; with ``--out`` write them as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    shapes = [*((size, size // 4) for size in SIZES), EXACT]
    rows = [measure(size, vocab_size, heads) for vocab_size in VOCABULARIES for size, heads in shapes]
    steps = {str(vocab_size): steps_of_the_encoding(12, vocab_size) for vocab_size in VOCABULARIES}
    if out is not None:
        result = {
            "question": (__doc__ or "").splitlines()[0],
            "records": rows,
            "steps_at_12": steps,
            "published": PUBLISHED,
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "date": time.strftime("%Y-%m-%d"),
        }
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{'vocabulary':>10} {'k':>3} {'heads':>5} {'B/token':>8} {'encode M/s':>11} {'decode M/s':>11}  fetch 8x512 ms"
    )
    for row in rows:
        print(
            f"{row['vocab_size']:>10,} {row['record_size']:>3} {row['heads']:>5} {row['bytes_per_token']:>8.2f} "
            f"{row['encode_tokens_per_second'] / 1e6:>11.2f} {row['decode_tokens_per_second'] / 1e6:>11.2f} "
            f"{row['fetch_seconds_8x512'] * 1e3:>15.2f}"
        )
    print("\nBytes a token by part at k = 12:")
    for name in dict.fromkeys(_PARTS.values()):
        found = [row["parts"][name] for row in rows if (row["record_size"], row["heads"]) == (12, HEADS)]
        print(f"  {name:<55}" + "".join(f"{value:>12,.2f}" for value in found))
    print("\nBytes of a record at k = 12, step by step:")
    for name in next(iter(steps.values())):
        print(f"  {name:<55}" + "".join(f"{steps[str(size)][name]:>12,.0f}" for size in VOCABULARIES))
    print("\nPublished: " + "; ".join(f"{name} {low}-{high}" for name, (low, high) in PUBLISHED.items()))


if __name__ == "__main__":
    main()
