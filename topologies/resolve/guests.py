"""The machines of a file that boot an image of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from topologies.guest_image import GuestImage
from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.resolve.machines import ResolvedMachines
from topologies.resolve.settings import Settings


def read_guest(settings: Settings, folder: FilePath) -> GuestImage | None:
    """The image of a machine, with absolute paths; None for a machine that has none."""
    if not settings.says("guest"):
        return None
    values = dict(settings.values["guest"])
    for key in ("kernel", "initrd", "disk"):
        if values[key]:
            values[key] = str((folder / values[key]).absolute())
    return GuestImage(**values)


def check_guests(resolved: ResolvedMachines, run: Mapping[str, Any], report: Report) -> None:
    """Report guests that cannot be booted as the file has them."""
    for settings, _ in resolved.kinds():
        if not settings.says("guest"):
            continue
        path, values = settings.at("guest"), settings.values["guest"]
        if run.get("engine") == "virtual":
            report.add(path, 'no guest for engine = "virtual"', "one", "a real QEMU runs in real time")
        if settings.values["kind"] != "qemu":
            hint = "a guest is booted in a real QEMU"
            report.add(settings.at("kind"), '"qemu" for a machine with a guest', show(settings.values["kind"]), hint)
        if values.get("disk") == values.get("kernel") == "" and not values.get("arguments"):
            report.add(path, "a kernel, a disk, or arguments that name an image", "none of them")
        if len(values.get("buses", ())) > (domains := max(1, len(settings.values["domains"]))):
            got = f"{len(values['buses'])}"
            report.add((*path, "buses"), f"at most {domains}: the machine has a device in each of its domains", got)
        report.check_pattern((*path, "ready_when"), values.get("ready_when", ""))
