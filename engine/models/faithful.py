"""Check of a loaded tokenizer against its tokenizer.json, with a probe text of commonly lost characters.

transformers may build a tokenizer from the class that tokenizer_config.json names; then spaces, line ends or added
tokens can differ from tokenizer.json, without an error (LlamaTokenizer over a byte-level file with
transformers 5.20). The tokenizers library reads the file as the model was trained with it. Knows nothing of
models and data.
"""

from __future__ import annotations

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


def faithful(tokenizer: Any, folder: Path) -> tuple[Any, str]:
    """A tokenizer that reads the probe as the folder's tokenizer.json does, and a note where it had to be another one.

    Args:
        tokenizer: as AutoTokenizer loaded it.
        folder: where from.

    Raises:
        ModelError: transformers cannot build such a tokenizer.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return tokenizer, ""
    wanted = Tokenizer.from_file(str(file))
    wanted.no_truncation()
    wanted.no_padding()
    ids = [wanted.encode(text, add_special_tokens=False).ids for text in PROBES]
    if probe_ids(tokenizer) == ids:
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
