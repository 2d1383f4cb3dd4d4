"""The oldest versions that pyproject.toml allows, as words for pip.

    pip install $(python -m tests.oldest)

Without torch, whose older builds bring gigabytes of CUDA; textual, whose pictures the tests compare to the last sign;
and datasets, which no test needs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_LEFT_OUT = ("torch", "textual", "datasets")


def oldest() -> list[str]:
    """``name==version`` of the requirements and the optional ones, as ``h5py==3.15``."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["optional"]]
    pins = (re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", requirement) for requirement in wanted)
    return [f"{pin[1]}=={pin[2]}" for pin in pins if pin is not None and pin[1] not in _LEFT_OUT]


if __name__ == "__main__":
    sys.stdout.write(" ".join(oldest()) + "\n")
