"""Display of a cache on the terminal: teacher and settings, bytes, statistics, some records."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from engine.cache.garbage import users
from engine.cache.store import CacheStore
from engine.cache.summary import ENTROPY_STEP, Summary, summarise
from engine.cli.cache_text import ShownRecord, Words, find_words, some_records
from engine.cli.console import Console
from engine.format import format_bytes

_PARTS = {
    "ids": "ids, and which of them are exact",
    "layout": "which ids are frequent",
    "head_log_probs": "log-probs of exact ids",
    "tail_mass": "probability of the sampled ids",
    "label_log_prob": "label's log-prob",
    "entropy": "entropy",
    "top1_id": "first choice (hold-out)",
    "top1_log_prob": "its log-prob (hold-out)",
    "rows": "hashes and places of rows",
    "headers": "headers of files",
}
_BAR_SIGNS = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show_cache(store: CacheStore, *, num_records: int, tokenizer: Path | None, as_json: bool) -> None:
    """Print what is in an open cache.

    Args:
        store: the cache.
        num_records: how many records to show as text.
        tokenizer: a model whose tokenizer makes text of ids; else that of the run's teacher.
        as_json: one JSON object on one line.

    Raises:
        ModelError: the model that was named is not there.
    """
    words = find_words(store, tokenizer)
    summary = summarise(store)
    records = some_records(store, num_records) if num_records else []
    if as_json:
        sys.stdout.write(json.dumps(_as_dict(store, summary, records, words), ensure_ascii=False) + "\n")
        return
    console = Console(highlight=False)
    console.print(f"[bold]{store.path}[/bold]", soft_wrap=True)
    _print_identity(console, store)
    _print_parts(console, summary)
    if summary.sampled_tokens:
        _print_teacher(console, store, summary)
    for record in records:
        _print_record(console, record, words)
    for problem in store.problems:
        console.print(problem, style="bold red", markup=False, soft_wrap=True)


def _print_identity(console: Console, store: CacheStore) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in store.identity.in_words().items():
        table.add_row(f"  {name}", value if len(value) <= 32 else f"{value[:32]}…")
    for run in users(store.path):
        table.add_row("  used by", str(run))
    console.print(table)


def _print_parts(console: Console, summary: Summary) -> None:
    tokens = max(1, summary.tokens)
    console.print(
        f"\n{summary.tokens:,} tokens of {summary.rows:,} rows in {summary.shards:,} shards, "
        f"{format_bytes(summary.bytes)}: {summary.bytes_per_token:.1f} bytes a token",
        markup=False,
    )
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, words in _PARTS.items():
        if name in summary.parts:
            table.add_row(f"  {words}", f"{summary.parts[name] / tokens:.2f}")
    console.print(table)


def _print_teacher(console: Console, store: CacheStore, summary: Summary) -> None:
    console.print(
        f"\nOf {store.identity.ids_in_record} ids {summary.mean_heads:.1f} are exact ids on average; the sampled ids "
        f"stand for {summary.mean_tail_mass:.0%} of the probability.\n"
        f"The teacher's loss on these tokens is {-summary.mean_label_log_prob:.3f} nats, its entropy "
        f"{summary.mean_entropy:.3f} ({summary.sampled_tokens:,} of them were read). Tokens by entropy in nats:",
        markup=False,
        soft_wrap=True,
    )
    largest = max(summary.entropy_counts)
    for step, count in enumerate(summary.entropy_counts):
        share = count / summary.sampled_tokens
        console.print(f"  {step * ENTROPY_STEP:4.1f} {_bar(count / largest)} {share:5.1%}", markup=False)


def _print_record(console: Console, record: ShownRecord, words: Words) -> None:
    console.print()
    if record.label is not None:
        console.print(
            f"{words.text(record.context)} → “{words.text([record.label])}”", markup=False, soft_wrap=True, style="bold"
        )
    label = math.exp(record.label_log_prob)
    figures = f"label's probability {label:.3f} · entropy {record.entropy:.2f} nats"
    console.print(f"  {figures} · sampled ids together {record.tail_mass:.3f}", markup=False)
    heads = "  ".join(f"“{words.text([token])}” {weight:.3f}" for token, weight in record.heads)
    tail = "  ".join(f"“{words.text([token])}”" for token in record.tail)
    console.print(f"  exact    {heads or 'none'}", markup=False, soft_wrap=True)
    console.print(f"  sampled  {tail or 'none'}", markup=False, soft_wrap=True)


def _bar(share: float) -> str:
    eighths = round(share * _BAR_SIGNS * 8)
    return (_EIGHTHS[-1] * (eighths // 8) + _EIGHTHS[eighths % 8]).ljust(_BAR_SIGNS)[:_BAR_SIGNS]


def _as_dict(store: CacheStore, summary: Summary, records: list[ShownRecord], words: Words) -> dict[str, object]:
    return {
        "path": str(store.path),
        "identity": asdict(store.identity),
        **asdict(summary),
        "bytes_per_token": summary.bytes_per_token,
        "entropy_step": ENTROPY_STEP,
        "used_by": [str(run) for run in users(store.path)],
        "records": [
            asdict(record)
            | {
                "context_text": words.text(record.context),
                "label_text": None if record.label is None else words.text([record.label]),
                "head_texts": [words.text([token]) for token, _ in record.heads],
                "tail_texts": [words.text([token]) for token in record.tail],
            }
            for record in records
        ],
        "problems": store.problems,
    }
