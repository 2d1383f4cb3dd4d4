"""The Python API of TinyDistill: ``from engine import RunConfig, distill, plan``.

Importing this is cheap: modules are imported at the first use of a name, and none of them is torch.
"""

from __future__ import annotations

import os
import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # ``python -m`` looks for every module in the current folder first: a random.py there would be run. The standard
    # library has been loaded from elsewhere as far as Python itself has begun.
    _folder = sys.path[0]
    if os.path.isdir(_folder) and os.path.isdir(os.curdir) and os.path.samefile(_folder, os.curdir):
        del sys.path[0]
        if _folder == os.path.dirname(os.path.dirname(__file__)):
            sys.path.append(_folder)  # a checkout: it holds the packages

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.run.launch import distill, open_run
    from engine.run.onward import plan
    from engine.settings.config import RunConfig

__all__ = ["RunConfig", "distill", "open_run", "plan"]

_HOMES = {"RunConfig": "settings.config", "distill": "run.launch", "open_run": "run.launch", "plan": "run.onward"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"engine.{_HOMES[name]}"), name)
