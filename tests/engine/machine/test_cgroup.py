"""Container limits, on file trees like those that kernels show."""

from pathlib import Path

from engine.machine.cgroup import cpu_quota, memory_limits

V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def _tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    texts = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    texts |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_control_groups_is_no_limit(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == []
    assert cpu_quota(tmp_path) is None


def test_version_2_reads_every_level_and_leaves_file_pages_out(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        "0::/user.slice/app.scope\n",
        V2_MOUNT,
        {
            "user.slice/app.scope/memory.max": "max\n",
            "user.slice/app.scope/memory.current": "900\n",
            "user.slice/memory.max": "3000\n",
            "user.slice/memory.high": "2000\n",
            "user.slice/memory.current": "1500\n",
            "user.slice/memory.stat": "anon 700\nactive_file 500\ninactive_file 100\n",
        },
    )
    (limit,) = memory_limits(root)
    assert (limit.limit_bytes, limit.used_bytes, limit.free_bytes) == (2000, 900, 1100)


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    root = _tree(tmp_path, "0::/\n", V2_MOUNT, {"memory.max": "5000\n", "memory.current": "6000\n"})
    (limit,) = memory_limits(root)
    assert (limit.limit_bytes, limit.free_bytes) == (5000, 0)


def test_version_1_inside_a_container_without_a_namespace(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
        "40 39 0:34 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "41 39 0:35 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n",
        {
            "memory/memory.limit_in_bytes": "2147483648\n",
            "memory/memory.usage_in_bytes": "1000000\n",
            "memory/memory.stat": "total_inactive_file 300000\ntotal_active_file 100000\n",
            "cpu/cpu.cfs_quota_us": "150000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    (limit,) = memory_limits(root)
    assert (limit.limit_bytes, limit.used_bytes) == (2**31, 600000)
    assert cpu_quota(root) == 1.5


def test_version_1_unlimited_is_no_limit(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        "4:memory:/\n",
        "40 39 0:34 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        {"memory/memory.limit_in_bytes": "9223372036854771712\n"},
    )
    assert memory_limits(root) == []


def test_the_innermost_group_may_be_gone_from_view(tmp_path: Path) -> None:
    root = _tree(tmp_path, "0::/../outside\n", V2_MOUNT, {"memory.max": "777\n", "cpu.max": "max 100000\n"})
    assert [limit.limit_bytes for limit in memory_limits(root)] == [777]
    assert cpu_quota(root) is None


def test_rubbish_in_the_files_is_no_limit(tmp_path: Path) -> None:
    root = _tree(tmp_path, "0::/\nnonsense\n", V2_MOUNT + "short\n", {"memory.max": "lots\n", "cpu.max": "\n"})
    assert memory_limits(root) == []
    assert cpu_quota(root) is None
