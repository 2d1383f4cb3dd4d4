"""The memory limit that a container or a service manager puts on this process (control groups v1 and v2, Linux).

A limit anywhere between the process's own group and the root of the hierarchy counts, so every level is read. This
file knows the kernel's files and nothing of what the numbers are used for. Elsewhere than on Linux there is no limit.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst ("memory.max", "memory.stat") and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# cgroup v1 says "no limit" with the largest multiple of a page below 2**63.
_NO_LIMIT = 2**60


@dataclass(frozen=True)
class MemoryLimit:
    """One level of the hierarchy that has a limit.

    Attributes:
        limit_bytes: the most that the group's processes may hold.
        used_bytes: what they hold and the kernel cannot take back (file pages in the cache are left out).
    """

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """Return the memory left under this limit."""
        return max(0, self.limit_bytes - self.used_bytes)


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Every memory limit that holds for this process, innermost first.

    Args:
        root: where ``proc`` and the mounts are found; another folder in tests.

    Returns:
        The levels with a limit; empty where there is none, or no control groups at all.
    """
    limits = []
    for folder, version in _groups(root):
        limit = _limit_v2(folder) if version == 2 else _limit_v1(folder)
        if limit is not None:
            limits.append(limit)
    return limits


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the group may use, as ``docker --cpus`` sets it; None without a quota."""
    quotas = []
    for folder, version in _groups(root, controller="cpu"):
        if version == 2:
            words = _text(folder / "cpu.max").split()
            quota, period = [*words, "", ""][:2]
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _limit_v2(folder: Path) -> MemoryLimit | None:
    # memory.high does not kill, but throttles a process that goes beyond it almost to a standstill: it is a limit too.
    values = [_number(folder / name) for name in ("memory.max", "memory.high")]
    known = [value for value in values if value is not None and value < _NO_LIMIT]
    if not known:
        return None
    stat = _stat(folder / "memory.stat")
    file_pages = stat.get("active_file", 0) + stat.get("inactive_file", 0)
    return MemoryLimit(min(known), max(0, (_number(folder / "memory.current") or 0) - file_pages))


def _limit_v1(folder: Path) -> MemoryLimit | None:
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is None or limit >= _NO_LIMIT:
        return None
    stat = _stat(folder / "memory.stat")
    file_pages = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    return MemoryLimit(limit, max(0, (_number(folder / "memory.usage_in_bytes") or 0) - file_pages))


def _groups(root: Path, controller: str = "memory") -> Iterator[tuple[Path, int]]:
    """Folders of this process's groups, from its own up to the mount, each with the version of its hierarchy."""
    mounts = _mounts(root, controller)
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        if version == 1 and controller not in names.split(","):
            continue
        for mounted_root, mount_point in mounts.get(version, []):
            yield from ((folder, version) for folder in _levels(root, mount_point, mounted_root, group))


def _levels(root: Path, mount_point: str, mounted_root: str, group: str) -> Iterator[Path]:
    """The group's folder and those above it. A container often sees only its own part of the tree, as the root."""
    mount = root / mount_point.lstrip("/")
    path = PurePosixPath(group)
    if ".." in path.parts:  # this namespace cannot see the group
        relative = PurePosixPath()
    elif path.is_relative_to(mounted_root):
        relative = path.relative_to(mounted_root)
    else:
        relative = PurePosixPath(str(path).lstrip("/"))
    while not (mount / relative).is_dir() and relative.parts:
        relative = relative.parent
    for level in (relative, *relative.parents):
        yield mount / level


def _mounts(root: Path, controller: str) -> dict[int, list[tuple[str, str]]]:
    """Where the hierarchies are mounted: version to (root inside the hierarchy, mount point)."""
    found: dict[int, list[tuple[str, str]]] = {}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or not kinds:
            continue
        if kinds[0] == "cgroup2":
            found.setdefault(2, []).append((fields[3], fields[4]))
        elif kinds[0] == "cgroup" and controller in kinds[-1].split(","):
            found.setdefault(1, []).append((fields[3], fields[4]))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _stat(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
