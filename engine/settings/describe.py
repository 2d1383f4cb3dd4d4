"""Description of a setting: type, bounds, group, unit and help, and its display in a form or a help text.

It is made from a pydantic model's fields and knows no setting by name.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
import shlex
import types
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": 2**10, "kib": 2**10, "kb": 10**3,
    "m": 2**20, "mib": 2**20, "mb": 10**6,
    "g": 2**30, "gib": 2**30, "gb": 10**9,
    "t": 2**40, "tib": 2**40, "tb": 10**12,
}  # fmt: skip


MOST_LAYERS = 1024
LAYERS_WORDS = f"a number from 1 to {MOST_LAYERS:,}, or a list such as 0,1,5"

MOST = 2**53
"""Upper bound of integer settings; every JSON parser is exact up to here."""


def parse_bytes(value: object) -> object:
    """Read a number of bytes as a user writes it: ``2GB`` (10**9), ``2 GiB`` or ``2G`` (2**30), ``1500000``.

    Raises:
        ValueError: the text is no size.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9_]{1,20}(?:\.[0-9]{1,20})?)\s*([a-zA-Z]*)\s*", value)
    if not match or match[2].lower() not in _BYTE_UNITS or not match[1].strip("_"):
        raise ValueError("a size such as 2GB, 1.5GiB or 700MB")
    return int(float(match[1].replace("_", "")) * _BYTE_UNITS[match[2].lower()])


def plain_text(value: object) -> object:
    """A text that can be written into a file and onto a screen; other values are left to the field's own check.

    Raises:
        ValueError: nothing but blanks, NUL characters, or bytes that are no text.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise ValueError("a text that is not empty")
    if "\0" in value:
        raise ValueError("a text without NUL characters")
    if not value.isascii() and not _is_unicode(value):
        raise ValueError("a name in UTF-8; rename the file or folder")
    return value


def plain_path(value: object) -> object:
    """Check a path, or a name that may be one: a text as in :func:`plain_text`, whose ``~name`` is an existing user.

    A file or folder of such a name in the current folder, where no user has it, comes back as an absolute path, as
    ``./~name`` does.

    Raises:
        ValueError: as above, or there is no user of that name.
    """
    value = plain_text(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if isinstance(value, str):
        value = _as_dropped(value)
    if isinstance(value, str) and value.startswith("./~"):
        return os.path.abspath(value)  # Path drops the "./", and "~" would be a home folder again
    if isinstance(value, str) and value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            if os.path.lexists(value):  # a file or folder here of that name
                return os.path.abspath(value)
            raise ValueError(
                f"the home folder of a user; there is no user {value.split('/')[0]} (a folder here is ./{value})"
            ) from None
    return value


def parse_layers(value: object) -> object:
    """Read a number of layers (``6``), or the layers themselves (``0,1,5``, or a list of numbers).

    Returns:
        A whole number, or the layers as one text, ``0,1,5``: rising and each once; a single layer is ``4,``.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        words = [word.strip() for word in value.split(",")]
        if len(words) == 1:
            value = int(words[0]) if _is_count(words[0]) else None
        else:
            words = words[:-1] if not words[-1] else words
            value = [int(word) if _is_count(word) else None for word in words]
    if isinstance(value, (list, tuple)):
        layers = list(value)
        if layers and all(type(layer) is int and 0 <= layer < MOST_LAYERS for layer in layers):
            if all(first < second for first, second in itertools.pairwise(layers)):
                return ",".join(map(str, layers)) + ("," if len(layers) == 1 else "")
            raise ValueError("layers in rising order, each once, such as 0,1,5")
    elif type(value) is int and 1 <= value <= MOST_LAYERS:
        return value
    raise ValueError(LAYERS_WORDS)


def layer_list(value: int | str | None) -> list[int] | None:
    """The layers that a setting as :func:`parse_layers` returns it names; None where it is a number of layers."""
    return [int(word) for word in value.split(",") if word] if isinstance(value, str) else None


def layer_count(value: int | str | None) -> int | None:
    """How many layers such a setting asks for; None where it is not set."""
    return len(layer_list(value) or ()) if isinstance(value, str) else value


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) <= 4


_EVERY_BLANK_ESCAPED = re.compile(r"(?:\\.|[^\\\s])+")


def _as_dropped(text: str) -> str:
    """A path as terminals and file managers paste it, read as the shell or a browser would: the first that is there.

    They put quotes around it, a backslash before each blank, ``file://`` and ``%20``, or a line break behind it. A name
    that is there as it stands is taken as it stands.
    """
    if not any(sign in text for sign in "'\"\\%\n\r\t") and text.strip() == text and "://" not in text:
        return text
    if _is_there(text):
        return text
    bare = text.strip()
    plain = bare
    if len(bare) > 2 and bare[0] == bare[-1] and bare[0] in "'\"":
        plain = bare[1:-1]
    elif "\\ " in bare and _EVERY_BLANK_ESCAPED.fullmatch(bare):  # with another blank in it, it was typed as it is
        plain = re.sub(r"\\(.)", r"\1", bare)
    if plain.startswith(("file:///", "file://localhost/")):
        plain = unquote(urlsplit(plain).path)
    candidates = [bare, plain]
    with contextlib.suppress(ValueError):  # an odd number of quotes
        candidates += ["".join(shlex.split(bare))] if len(shlex.split(bare)) == 1 else []
    good = [name for name in candidates if name.strip() and "\0" not in name]
    # A name of which nothing is there may be that of a folder to come.
    return next((name for name in good if _is_there(name)), plain if plain in good else text)


def _is_there(name: str) -> bool:
    try:
        return os.path.lexists(Path(name).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates stand for bytes that were not UTF-8
        return False
    return True


def setting(
    default: Any,
    text: str,
    *,
    group: str,
    unit: str = "",
    may_change: bool = False,
    **field: Any,
) -> Any:
    """A field with its one-line help, its group and its unit.

    Args:
        default: the value when not set; None leaves it to the planner.
        text: the help.
        group: the heading under which it is shown.
        unit: what it counts; "bytes" is shown in GiB and read as "2GB".
        may_change: whether a resumed run may have another value.
        field: bounds (``ge``, ``gt``, ``le``, ``lt``) and ``alias``, as pydantic takes them.
    """
    extra: dict[str, Any] = {"group": group, "unit": unit, "may_change": may_change}
    return Field(default, description=text, json_schema_extra=extra, **field)


@dataclass(frozen=True)
class SettingInfo:
    """One setting as a form, a help text or a table shows it.

    Attributes:
        name: as it is typed, with underscores.
        kind: "bool", "int", "float", "bytes", "layers", "choice", "path" or "text".
        choices: what is accepted, for kind "choice".
        default: the value when not set; None leaves it to the planner.
        minimum, maximum: inclusive unless ``exclusive_minimum``/``exclusive_maximum`` say otherwise.
        optional: whether None (the planner's choice) is allowed.
    """

    name: str
    field: str
    group: str
    help: str
    unit: str
    kind: str
    choices: tuple[str, ...]
    default: Any
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    exclusive_maximum: bool
    optional: bool
    may_change: bool

    def accepted(self) -> str:
        """Describe the accepted values; the command line and the wizard show the same text."""
        match self.kind:
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "bool":
                return "on or off"
            case "bytes":
                return "a size such as 2GB, 1.5GiB or 700MB"
            case "layers":
                return LAYERS_WORDS
            case "int" | "float":
                noun = "a whole number" if self.kind == "int" else "a number"
                if self.minimum is None:
                    return noun
                low = f"{noun} above {self.minimum:g}" if self.exclusive_minimum else f"{noun} from {self.minimum:g}"
                if self.maximum is None or self.maximum >= MOST:
                    return low if self.exclusive_minimum else f"{low} up"
                high = f"{self.maximum:,}" if self.kind == "int" else f"{self.maximum:g}"
                if self.exclusive_maximum:
                    return f"{low} and below {high}"
                return f"{low} and at most {high}" if self.exclusive_minimum else f"{low} to {high}"
            case "path":
                return "a folder"
            case _:
                return "text"


def describe(model: type[BaseModel]) -> dict[str, SettingInfo]:
    """Every setting of a model, by the name that is typed, in the order of definition."""
    found = (_describe(field, info) for field, info in model.model_fields.items())
    return {info.name: info for info in found}


ELSEWHERE = {
    "lr": "learning_rate",
    "batch_size": "student_batch",
    "micro_batch": "student_batch",
    "per_device_train_batch_size": "student_batch",
    "gradient_accumulation_steps": "gradient_accumulation",
    "grad_accum": "gradient_accumulation",
    "max_length": "sequence_length",
    "max_seq_length": "sequence_length",
    "context_length": "sequence_length",
    "dataset": "data",
    "train_file": "data",
    "split": "data_split",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "output": "output_dir",
    "out": "output_dir",
    "alpha": "kd_weight",
    "top_k": "record_size",
    "dtype": "precision",
    "load_in_8bit": "quantization",
    "load_in_4bit": "quantization",
    "quantize": "quantization",
    "save_steps": "checkpoint_every",
    "num_layers": "student_layers",
    "model": "teacher",
}
"""Names of our settings in other programs."""


def suggestion(name: str, known: Collection[str], *, prefix: str = "--") -> str:
    """``; did you mean …?`` for a name that is near a known one or what other programs call it, else nothing."""
    name = name.replace("-", "_")
    if ELSEWHERE.get(name) in known:
        return f"; did you mean {prefix}{ELSEWHERE[name]}?"
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _describe(field: str, info: FieldInfo) -> SettingInfo:
    extra: dict[str, Any] = info.json_schema_extra  # type: ignore[assignment]
    annotation: Any = info.annotation
    optional = False
    if get_origin(annotation) in (Union, types.UnionType):
        optional = type(None) in get_args(annotation)
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    choices: tuple[str, ...] = ()
    if get_origin(annotation) is Literal:
        kind, choices = "choice", tuple(get_args(annotation))
    elif extra["unit"] in ("bytes", "layers"):
        kind = extra["unit"]
    else:
        kind = {bool: "bool", int: "int", float: "float", Path: "path", str: "text"}[annotation]
    bounds: dict[str, float] = {}
    for constraint in info.metadata:
        for bound in ("ge", "gt", "le", "lt"):
            if hasattr(constraint, bound):
                bounds[bound] = getattr(constraint, bound)
    return SettingInfo(
        name=info.alias or field,
        field=field,
        group=extra["group"],
        help=info.description or "",
        unit=extra["unit"],
        kind=kind,
        choices=choices,
        default=info.default,
        minimum=bounds.get("ge", bounds.get("gt")),
        maximum=bounds.get("le", bounds.get("lt")),
        exclusive_minimum="gt" in bounds,
        exclusive_maximum="lt" in bounds,
        optional=optional,
        may_change=extra["may_change"],
    )
