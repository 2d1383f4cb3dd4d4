"""Before a test process is forked: nothing may be shared with children that will be killed.

tqdm guards its bars with a lock that is shared between processes. A child that is killed while it holds it (writing or
loading a model is enough) stops every later child that wants it, for ever. No test draws bars in several processes.
"""

from __future__ import annotations

import threading

from tqdm import tqdm


def share_nothing_with_children() -> None:
    """Give tqdm a lock of this process alone, and no thread beside it."""
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
