"""Check of a loaded tokenizer against its tokenizer.json, with a probe text of commonly lost characters.

transformers may build a tokenizer from the class that tokenizer_config.json names; then spaces, line ends or added
tokens can differ from tokenizer.json, without an error (LlamaTokenizer over a byte-level file with
transformers 5.20). The tokenizers library reads the file as the model was trained with it. Knows nothing of
models and data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.errors import ModelError
from engine.model_files.vocabulary import Vocabulary

PROBES = (
    "Two  spaces, a tab\tand lines\n\n\nof text \r\n   1234567890 3.14 -7\n",
    "  Äpfel, Öl, süß, déjà œuvre ñandú Łódź 😀👩‍💻🇩🇪 漢字かなカナ 한국어 العربية ру́сский don't WE'LL {[(1, 2)]} ",
)
"""Spaces, tabs, line ends, digits, umlauts, emoji, scripts of the world; spaces at both ends, and none at one."""


def load_faithful(load: Callable[[], Any], folder: Path) -> tuple[Any, str]:
    """Load a tokenizer that reads the probe as the folder's tokenizer.json does; a note where it had to be another one.

    The tokenizer of the file itself is gone before the other is loaded: with 262,144 ids each takes 50 MiB and more.

    Args:
        load: loads it as AutoTokenizer does.
        folder: where from.

    Raises:
        ModelError: transformers cannot build such a tokenizer.
    """
    file = folder / "tokenizer.json"
    ids = _ids_of_file(file) if file.is_file() else None
    tokenizer = load()
    if ids is None or probe_ids(tokenizer) == ids:
        return tokenizer, ""
    plain = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if probe_ids(plain) == ids:
        return plain, (
            f"The tokenizer that transformers builds from {folder} ({type(tokenizer).__name__}) reads text otherwise "
            "than tokenizer.json says: tokenizer.json is used. Where transformers does the same with the student, open "
            "its tokenizer with PreTrainedTokenizerFast.from_pretrained."
        )
    raise ModelError(
        f"The tokenizer that transformers builds from {folder} ({type(tokenizer).__name__}) reads text otherwise than "
        "tokenizer.json says.",
        "The student would learn from tokens that the model has never seen like this.",
        "Save the tokenizer again with the version of transformers that it was made with, or upgrade transformers.",
    )


def _ids_of_file(file: Path) -> list[list[int]]:
    """The ids of each probe as the tokenizers library reads the file."""
    wanted = Tokenizer.from_file(str(file))
    wanted.no_truncation()
    wanted.no_padding()
    return [wanted.encode(text, add_special_tokens=False).ids for text in PROBES]


def probe_ids(tokenizer: Any) -> list[list[int]]:
    """The ids of each probe, without special tokens."""
    return [list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in PROBES]


def check_ids(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Make sure that a loaded tokenizer's ids below V_eff are those that were read from its files.

    Raises:
        ModelError: they are not.
    """
    loaded = {number: token for token, number in tokenizer.get_vocab().items() if number < vocabulary.size}
    read = {number: token for number, token in vocabulary.tokens.items() if number < vocabulary.size}
    differing = next((n for n in sorted(loaded.keys() | read.keys()) if loaded.get(n) != read.get(n)), None)
    if differing is not None:
        raise ModelError(
            f"The tokenizer in {vocabulary.folder} has {read.get(differing)!r} for the id {differing} by its files, "
            f"and {loaded.get(differing)!r} as transformers loads it.",
            "Records name token ids: they would name another token.",
            "Save the tokenizer again with the version of transformers that it was made with, or upgrade transformers.",
        )
