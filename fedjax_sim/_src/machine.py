"""What machine this is, and where things about it are kept between runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The processor's name, as far as the system tells it, with family and model on x86.

    A virtual machine may hide all but the maker: ``AMD EPYC (family 25, model 1)`` is Zen 3, model 17 is Zen 4.
    """
    facts: dict[str, str] = {}
    for line in _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    if not (name := facts.get("model name")):
        return platform.processor() or platform.machine()
    family, model = facts.get("cpu family", ""), facts.get("model", "")
    return f"{name} (family {family}, model {model})" if family.isdigit() and model.isdigit() else name


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> Path:
    """``fedjax-sim`` in the user's cache folder; it need not exist.

    Raises:
      RuntimeError: the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "fedjax-sim"
