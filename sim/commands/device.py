"""``ivsim device`` and ``ivsim conformance``: the datasheets of the devices, and their comparison with QEMU."""

from __future__ import annotations

import json

import click
import msgspec

from nodes.device.profiles import PROFILES, profile
from nodes.device.variants import make_variant, parse_cells, variant_name
from sim.commands.output import echo_json
from sim.commands.parameters import NameChoice, WholeNumber


@click.group()
def device() -> None:
    """Describe the simulated PCI devices."""


@device.command("list")
def list_profiles() -> None:
    """List the device profiles."""
    from sim.views.datasheet import summary

    click.echo(summary(PROFILES.values()))


@device.command("cells")
def list_cells() -> None:
    """List the cells of a profile that a variant can change, and their values."""
    from nodes.device.variants import VARIANT_CELLS
    from topologies.text_tables import aligned

    for line in aligned([(name, f"{cell.text} ({cell.values})") for name, cell in VARIANT_CELLS.items()]):
        click.echo(line)


@device.command("odd")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_odd_devices(as_json: bool) -> None:
    """List devices that are legal and odd: what they break, and what a driver must do.

    `ivsim run odd_devices` runs them all; each is a table [machines.NAME.variant] there.
    """
    from nodes.device.variants import ODD_DEVICES

    if as_json:
        echo_json([{**msgspec.structs.asdict(odd), "cells": dict(odd.cells)} for odd in ODD_DEVICES])
        return
    for odd in ODD_DEVICES:
        click.echo(f"{odd.name}: {variant_name('', odd.cells).removeprefix('+')}")
        click.echo(f"  breaks: {odd.breaks}")
        click.echo(f"  a driver must {odd.must}")


@device.command("show")
@click.argument("name", metavar="PROFILE", type=NameChoice(PROFILES, PROFILES))
@click.option("--variant", "texts", multiple=True, metavar="CELL=VALUE", help="Change a cell. Repeatable.")
@click.option("--vectors", type=WholeNumber(min=1), help="Own vectors. Default: 2, or what the device always has.")
@click.option("--memory-bytes", type=WholeNumber(min=1), help="Size of the shared memory, a power of two.")
def show(name: str, texts: tuple[str, ...], vectors: int | None, memory_bytes: int | None) -> None:
    """Print the datasheet of PROFILE: configuration space, registers, MSI-X, behaviour, each with its source."""
    from sim.views.datasheet import datasheet

    shown = make_variant(profile(name), parse_cells(list(texts)))
    click.echo(datasheet(shown, vectors=vectors, memory_bytes=memory_bytes), nl=False)


@click.command("conformance")
@click.option("--qemu", help="The QEMU to compare with. Default: that of IVSHMEM_QEMU, else qemu-system-x86_64.")
@click.option(
    "--profile",
    "names",
    multiple=True,
    type=NameChoice(["qemu-doorbell", "qemu-plain"]),
    help="Device profile; can be repeated. Default: both.",
)
@click.option(
    "--access",
    default="tcg",
    type=NameChoice(["tcg", "kvm", "qtest"]),
    help="Who makes the accesses: a processor under TCG or KVM, or the qtest protocol.",
)
@click.option("--seed", default=0, type=WholeNumber(min=0), help="The first seed.")
@click.option("--seeds", default=1, type=WholeNumber(min=1), help="How many seeds, counting up.")
@click.option("--operations", default=1000, type=WholeNumber(min=1), help="Operations for each seed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of text.")
@click.pass_context
def conformance(
    context: click.Context,
    qemu: str | None,
    names: tuple[str, ...],
    access: str,
    seed: int,
    seeds: int,
    operations: int,
    as_json: bool,
) -> None:
    """Compare the simulated device with a real QEMU, operation by operation.

    Random sequences of operations are applied to both: accesses of every size and alignment, doorbells, masks, resets,
    peers that join and leave, own vectors that arrive late, migrations; on machines pc and q35, with 1 to 2048 vectors.
    The accesses are those of a guest's own code, which runs on a processor under TCG or KVM, or those of qtest. A
    divergence is reduced to its shortest sequence and printed; the exit code is then 1.
    """
    from sim.oracle.conformance import COMPARED, CONFORMING, conform

    agree = True
    if not as_json:
        click.echo(f"compared after each operation: {', '.join(COMPARED)}")
    for name in names or CONFORMING:
        for number in range(seed, seed + seeds):
            report = conform(qemu, name, number, operations, access=access)
            agree = agree and report.agrees
            if as_json:
                divergence = None if report.divergence is None else str(report.divergence)
                row = {
                    "profile": report.profile,
                    "qemu_version": str(report.version),
                    "access": report.access,
                    "scenes": report.scenes,
                    "compared": COMPARED,
                    "seed": report.seed,
                    "operations": report.operations,
                    "kinds": dict(report.kinds),
                    "divergence": divergence,
                }
                click.echo(json.dumps(row))
            else:
                click.echo(str(report))
    if not agree:
        context.exit(1)
