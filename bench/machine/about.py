"""What this machine is called, and how busy others keep it."""

from __future__ import annotations

import os
import platform
import sys


def describe() -> dict[str, str | int]:
    """CPU model, processors, operating system, Python."""
    return {
        "cpu": _cpu_model(),
        "processors": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            info = dict(_pair(line) for line in f)
    except OSError:
        info = {}
    name = info.get("model name") or platform.processor() or platform.machine()
    family = [f"{key} {info[key]}" for key in ("cpu family", "model") if key in info]
    # Virtual machines often hide the model's name; family and number still tell what it is.
    return f"{name} ({', '.join(family)})" if family else name


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def cpu_seconds() -> float | None:
    """Processor time that everybody on this machine has used since it started, or None if it does not say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
