"""Named commit points: places between two steps of a protocol where a test can inject a fault.

``TINYDISTILL_CRASH_AT=shard-renamed:2`` kills this process when it passes ``shard-renamed`` for the second time;
``TINYDISTILL_ENOSPC_AT`` simulates a full disk there instead. Unless one of the two is set, passing a
commit point does nothing.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()


def commit_point(name: str) -> None:
    """Pass a commit point.

    Raises:
        OSError: ENOSPC, where a test asked for a full disk here.
    """
    crash, full = os.environ.get("TINYDISTILL_CRASH_AT"), os.environ.get("TINYDISTILL_ENOSPC_AT")
    if crash is None and full is None:
        return
    _passed[name] += 1
    here = f"{name}:{_passed[name]}"
    if crash == here:
        os.kill(os.getpid(), signal.SIGKILL)
    if full == here:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
