"""Phase 0 on tiny models, for tests of what comes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.channel.events import EventWriter
from engine.data.packing import PackedRow, Packer, TokenisedDocument
from engine.data.passes import PrepareSettings
from engine.data.prepare import PrepareResult, prepare
from engine.data.sources import open_source
from engine.data.tokens import Split, TokenFile
from engine.model_files.spec import read_spec
from tests.tiny import tiny_model, tiny_tokenizer


def run_prepare(data: Path | str, out: Path, *, control: PhaseControl | None = None, **other: Any) -> PrepareResult:
    """Prepare with small settings; ``other`` replaces any of them. Events go beside ``out``."""
    events = EventWriter(out.parent / "events.jsonl", phase="prepare")
    try:
        arguments: dict[str, Any] = {
            "teacher": read_spec(tiny_model()),
            "student": read_spec(tiny_model(num_layers=2, seed=1)),
            "sequence_length": 32,
            "samples": None,
            "holdout": 0.2,
            "packing": True,
        }
        if "source" not in other:
            other["source"] = open_source(str(data), text_field=None, split="train")
        arguments |= other
        asked = {field.name: arguments.pop(field.name) for field in fields(PrepareSettings) if field.name in arguments}
        return prepare(**arguments, settings=PrepareSettings(**asked), out=out, channel=Channel(events, control))
    finally:
        events.close()


def texts_of(path: Path, split: Split) -> list[str]:
    """The text of a token file, one document after the other."""
    with TokenFile(path) as file:
        rows = file.rows(split, range(file.num_rows(split)))
        ids = [int(token) for row, length in zip(rows.tokens, rows.lengths, strict=True) for token in row[:length]]
    text: str = tiny_tokenizer().decode(ids)
    return text.split("<|endoftext|>")[:-1]


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_chat_model(folder: Path) -> Path:
    """A model with a chat template, in a folder that is not there yet."""
    shutil.copytree(tiny_model(), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def make_bos_model(folder: Path) -> Path:
    """A model whose tokenizer puts ``<|pad|>`` (1) before each text, in a folder that is not there yet."""
    shutil.copytree(tiny_model(), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|pad|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|pad|>": {"id": "<|pad|>", "ids": [1], "tokens": ["<|pad|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<|pad|>"}))
    return folder


def write_chats(path: Path, count: int = 40, answer: str = "answer {}") -> Path:
    """A file of conversations: a question and an answer each."""
    turns = [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": answer.format(n)}]
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    return path


def pack(documents: Iterable[TokenisedDocument], length: int, **settings: Any) -> Iterator[PackedRow]:
    """Rows of all documents; the settings are those of Packer."""
    packer = Packer(length, **settings)
    for document in documents:
        yield from packer.add(document)
    yield from packer.finish()
