"""The wizard: a reader of events and a writer of settings."""

import os
import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # ``python -m`` looks for every module in the current folder first: a random.py there would be run. As in
    # ``engine``, which cannot be asked before it is sure that it is ours.
    _folder = sys.path[0]
    if os.path.isdir(_folder) and os.path.isdir(os.curdir) and os.path.samefile(_folder, os.curdir):
        del sys.path[0]
        if _folder == os.path.dirname(os.path.dirname(__file__)):
            sys.path.append(_folder)  # a checkout: it holds the packages
