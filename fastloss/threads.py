"""How many threads a call uses: set_num_threads, FASTLOSS_NUM_THREADS, OMP_NUM_THREADS, or the CPUs to be had."""

from __future__ import annotations

import math
import os
from pathlib import Path

from fastloss import validate

_set: int | None = None
_default: int | None = None  # read at the first use


def set_num_threads(n: int | None) -> None:
    """Use n threads where a call says nothing; None goes back to the environment or the CPUs to be had.

    >>> import fastloss as fl
    >>> fl.set_num_threads(2)
    >>> fl.get_num_threads()
    2
    >>> fl.set_num_threads(None)
    """
    global _set
    _set = validate.threads(n)


def get_num_threads() -> int:
    """The number of threads that a call uses at most, where it says nothing itself.

    That is the number of `set_num_threads`, else of FASTLOSS_NUM_THREADS, else of OMP_NUM_THREADS, else the CPUs that
    this process may use: its affinity, within the quota of its cgroup. The last three are read once.

    >>> import fastloss as fl
    >>> fl.get_num_threads() >= 1
    True
    """
    global _default
    if _set is not None:
        return _set
    if _default is None:
        _default = from_environment(os.environ) or available_cpus()
    return _default


def from_environment(environ: os._Environ[str] | dict[str, str]) -> int | None:
    """The number that the environment asks for, or None."""
    own = environ.get("FASTLOSS_NUM_THREADS")
    if own:
        try:
            count = int(own)
        except ValueError:
            count = 0
        if count < 1:
            raise ValueError(f"FASTLOSS_NUM_THREADS is {own!r}: expected an integer of at least 1")
        return count
    # OpenMP's variable may list a number for each level of nesting; a malformed one is OpenMP's to complain about.
    try:
        count = int(environ.get("OMP_NUM_THREADS", "").split(",")[0])
    except ValueError:
        return None
    return count if count >= 1 else None


def available_cpus(cgroup_root: str | Path = "/sys/fs/cgroup", own_cgroups: str | Path = "/proc/self/cgroup") -> int:
    """The CPUs that this process may use: its affinity, within the quota of its cgroup."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(cgroup_root, own_cgroups)
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def cgroup_quota(cgroup_root: str | Path, own_cgroups: str | Path) -> float | None:
    """The least number of CPUs that this process' cgroups (version 2 or 1) and their parents allow, or None."""
    root = Path(cgroup_root)
    quotas = []
    for controllers, group in _own_groups(Path(own_cgroups)):
        if not controllers:
            quotas += [_quota_v2(path / "cpu.max") for path in _with_parents(root, group)]
        elif "cpu" in controllers.split(","):
            for mount in {root / "cpu", root / controllers}:
                quotas += [_quota_v1(path) for path in _with_parents(mount, group)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _own_groups(path: Path) -> list[tuple[str, str]]:
    """(controllers, group) of each line "number:controllers:group"; version 2 has no controllers."""
    text = _read(path)
    fields = [line.split(":", 2) for line in text.splitlines()] if text else []
    # A container may see its own cgroup as the root of the file system of cgroups, whatever path this file names.
    return [(field[1], field[2]) for field in fields if len(field) == 3] or [("", "/"), ("cpu", "/")]


def _with_parents(mount: Path, group: str) -> list[Path]:
    parts = [part for part in group.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:length]) for length in range(len(parts) + 1)]


def _quota_v2(path: Path) -> float | None:
    fields = (_read(path) or "").split()
    return _ratio(fields[0], fields[1]) if len(fields) == 2 else None


def _quota_v1(group: Path) -> float | None:
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return _ratio(quota, period) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    try:
        limit, interval = int(quota), int(period)
    except ValueError:
        return None  # "max"
    return limit / interval if limit > 0 and interval > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
