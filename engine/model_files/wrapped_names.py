"""Weights that were saved inside of a wrapper, whose name stands in each of theirs: `_orig_mod.` of torch.compile.

transformers looks for the plain names, and would start with random weights; the header tells before anything is done.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from pathlib import Path

from engine.errors import ModelError
from engine.model_files.python_line import python_line

_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
    "module": "DataParallel or DeepSpeed",
}
# The last one is a word that a model's own part may have, so it counts at the beginning alone.
_IN_NAMES = re.compile(rf"^(?:({'|'.join(_WRAPPERS)})\.)+|({'|'.join(list(_WRAPPERS)[:-1])})\.")


def check_not_wrapped(folder: Path, names: Collection[str]) -> None:
    """Refuse weights whose names have a wrapper's in them.

    Args:
        folder: the model's, for the message.
        names: of all tensors.

    Raises:
        ModelError: the names have one; the message has the command that takes it out.
    """
    found = {name: match for name in names if (match := _IN_NAMES.search(name))}
    at_all = [match for match in found.values() if match[1] != "module"]
    if not found or (not at_all and len(found) < len(names)):
        return
    name, match = next(iter(found.items()))
    wrapper = match[1] or match[2]
    raise ModelError(
        f"The weights in {folder} have names of a wrapper: {name}, where {_IN_NAMES.sub('', name)} is meant.",
        f"They were saved from within {_WRAPPERS[wrapper]} ({wrapper}).",
        f"Save the inner model, or correct the names in place: {_correct(folder)}",
    )


def _correct(folder: Path) -> str:
    """A command that takes the wrappers out of the names in a folder's safetensors, and in their index."""
    code = (
        "import glob, json, os, re; from safetensors.torch import load_file as l, save_file as s; "
        f'plain = lambda n: re.sub(r"{_IN_NAMES.pattern}", "", n); '
        '[(s({plain(k): v for k, v in l(f).items()}, f + ".new", {"format": "pt"}), os.replace(f + ".new", f)) '
        'for f in glob.glob("*.safetensors")]; '
        '[(lambda i: (i.update(weight_map={plain(k): f for k, f in i["weight_map"].items()}), '
        'json.dump(i, open(p, "w"))))(json.load(open(p))) for p in glob.glob("*.safetensors.index.json")]'
    )
    return f"cd {shlex.quote(str(folder))} && {python_line(code)}"
