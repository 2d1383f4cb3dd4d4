"""The oldest versions that pyproject.toml allows, as words for pip.

    pip install $(python -m tests.oldest)

Without torch, whose older builds bring gigabytes of CUDA.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def oldest() -> list[str]:
    """``name==version`` of each requirement to run and of each optional one, as ``h5py==3.15``."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["optional"]]
    pins = (re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", requirement) for requirement in wanted)
    return [f"{pin[1]}=={pin[2]}" for pin in pins if pin is not None and pin[1] not in ("torch", "datasets")]


if __name__ == "__main__":
    sys.stdout.write(" ".join(oldest()) + "\n")
