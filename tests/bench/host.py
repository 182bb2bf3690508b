"""What the figures depend on besides the code: the build of the interpreter, the host, and whether it is quiet."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["QUIET_SHARE", "cpu_model", "describe_interpreter", "describe_noise", "noise"]

QUIET_SHARE = 0.03
"""Of the CPU time of the host, as much may be used by others or taken by the hypervisor."""
LOOK_S = 2.0
BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq: columns of /proc/stat, proc_stat(5)
STEAL = 7


def describe_interpreter(
    variables: Callable[[str], object] = sysconfig.get_config_var,
    prefix: str = sys.base_prefix,
    release: Path = Path("/etc/os-release"),
) -> str:
    """The implementation, its version, who built it and how: "CPython 3.11.2, Debian's build, PGO, LTO, -O2"."""
    arguments = str(variables("CONFIG_ARGS") or "")
    flags = f"{variables('OPT') or ''} {variables('CFLAGS') or ''}".split()
    # Debian's builds are made with profiles and LTO and do not tell: the flags are taken out of what sysconfig says
    # (changelog of python3.8, 3.8.0~b2-3 and later). A flag for making profiles is left, and none for using them.
    silent = bool(variables("PGO_PROF_GEN_FLAG")) and not variables("PGO_PROF_USE_FLAG")
    linked = "LTO" if "--with-lto" in arguments or any(flag.startswith("-flto") for flag in flags) else "no LTO"
    optimised = [
        "PGO" if silent or "--enable-optimizations" in arguments else "no PGO",
        "LTO not told" if silent and linked == "no LTO" else linked,
        *[flag for flag in flags if flag.startswith("-O")][-1:],
        *(["a debug build"] if variables("Py_DEBUG") else []),
    ]
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([version, f"{_builder(prefix, release)} build", *optimised])


def _builder(prefix: str, release: Path) -> str:
    if "/.pyenv/" in f"{prefix}/":
        return "a pyenv"
    if prefix in ("/usr", "/"):
        names = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
        return names.get("NAME", "the system").strip('"').split(" ")[0] + "'s"
    return f"the {prefix}"


def noise(look_s: float = LOOK_S, source: Path = Path("/proc/stat")) -> tuple[float, float]:
    """Look at the CPUs for a while, doing nothing: the shares of CPU time that others used and the hypervisor took."""
    before = _ticks(source)
    time.sleep(look_s)
    spent = [after - first for first, after in zip(before, _ticks(source), strict=True)]
    total = sum(spent) or 1
    return sum(spent[place] for place in BUSY) / total, spent[STEAL] / total


def _ticks(source: Path) -> list[int]:
    return [int(word) for word in source.read_text().splitlines()[0].split()[1 : STEAL + 2]]


def describe_noise(others: float, stolen: float) -> str:
    """Why the host is not quiet; empty when it is."""
    told = []
    if others > QUIET_SHARE:
        told.append(f"other processes use {others:.0%} of its CPU time")
    if stolen > QUIET_SHARE:
        told.append(f"its hypervisor takes {stolen:.0%} of it")
    return f"this host is not quiet: {' and '.join(told)}" if told else ""


def cpu_model() -> str:
    """The name of the processor."""
    return next(_cpu_models(), platform.machine()) + f", {os.cpu_count()} CPUs"


def _cpu_models() -> Iterator[str]:
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            yield text.partition(":")[2].strip()
