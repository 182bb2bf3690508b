"""The version of ivshmem of each domain, and the devices that its machines have there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nodes.device.profiles import PROFILES
from nodes.device.v2.profiles import ProfileV2
from nodes.device.v2.sections import PAGE_BYTES, SectionLayout
from nodes.errors import RemoteProtocolError
from nodes.wire.v2.protocol import PROTOCOL_VIRTIO, VECTORS_MAX
from topologies.domain import Domain, Memory
from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.language.sizes import parse_size
from topologies.language.toml_positions import Path
from topologies.resolve.machines import ResolvedMachines
from topologies.resolve.settings import Settings

DEFAULT_PROFILES = {1: "qemu-doorbell", 2: "qemu-v2"}
"""The profile of a device in a domain of each version, for a machine that names none of that version."""
_KEYS_OF_2 = {"max_peers": 2, "output_size": 0, "protocol": 0}


def read_version(name: str, table: Mapping[str, Any], path: Path, memory: Memory, report: Report) -> Domain | None:
    """The domain of a table; None when a problem with its version was reported."""
    version, dialect = table.get("version", 1), table.get("dialect", "v0")
    if version == 1:
        for key, default in _KEYS_OF_2.items():
            if table.get(key, default) != default:
                report.add((*path, key), f"no {key} in a domain of version 1", show(table[key]), "version = 2 has it")
        return Domain(name=name, memory=memory, dialect=dialect, host=table.get("host", ""))
    if dialect != "v0":
        report.add((*path, "dialect"), "no dialect in a domain of version 2, which has one of its own", show(dialect))
    if not {"max_peers", "output_size", "protocol"} <= table.keys():
        return None  # reported by the reader
    output_bytes = table["output_size"] if isinstance(table["output_size"], int) else parse_size(table["output_size"])
    max_peers, protocol = table["max_peers"], table["protocol"]
    if output_bytes % PAGE_BYTES:
        report.add((*path, "output_size"), "whole pages of 4K", show(table["output_size"]))
        return None
    if protocol >= PROTOCOL_VIRTIO and max_peers != 2:
        report.add((*path, "max_peers"), f"2, for the virtio protocol {protocol:#06x}", show(max_peers))
    try:
        SectionLayout(memory.size_bytes, max_peers, output_bytes)
    except RemoteProtocolError as error:
        report.add((*path, "output_size"), "sections that fit into the memory", str(error))
        return None
    return Domain(
        name=name,
        memory=memory,
        version=2,
        max_peers=max_peers,
        output_size_bytes=output_bytes,
        protocol=protocol,
        host=table.get("host", ""),
    )


def settle_versions(resolved: ResolvedMachines, domains: Mapping[str, Domain | None], report: Report) -> None:
    """Choose the profile of each device, and check what a domain of version 2 asks of its machines."""
    of_2 = {name: domain for name, domain in domains.items() if domain is not None and domain.version == 2}
    members: dict[str, list[tuple[Settings, Sequence[int]]]] = {name: [] for name in of_2}
    for settings, indices in resolved.kinds():
        if not of_2 and PROFILES.get(settings.values["profile"], PROFILES["qemu-doorbell"]).version == 1:
            continue
        _settle_profiles(settings, domains, report)
        for name in settings.values["domains"]:
            if name in of_2:
                members[name].append((settings, indices))
    for name, domain in of_2.items():
        _check_members(domain, members[name], report)


def _settle_profiles(settings: Settings, domains: Mapping[str, Domain | None], report: Report) -> None:
    """A machine's profile is that of its devices of the same version; the others have the default of theirs."""
    values = settings.values
    profile = PROFILES.get(values["profile"])
    if profile is None:
        return  # reported
    versions = [domain.version for name in values["domains"] if (domain := domains.get(name)) is not None]
    if len(versions) < len(values["domains"]):
        return  # reported
    if profile.version not in versions and settings.says("profile"):
        fitting = [name for name, made in PROFILES.items() if made.version in versions]
        expected = f"one of the profiles {', '.join(fitting)}, for domains of version {versions[0]}"
        report.add(settings.at("profile"), expected, show(profile.name))
        return
    profiles = tuple(profile.name if profile.version == version else DEFAULT_PROFILES[version] for version in versions)
    values["profile"] = profiles[0]
    if len(set(profiles)) > 1:
        values["profiles"] = profiles


def _check_members(domain: Domain, members: Sequence[tuple[Settings, Sequence[int]]], report: Report) -> None:
    """Report machines that a domain of version 2 cannot have."""
    if not members:
        return
    path: Path = ("domains", domain.name, "max_peers")
    count = sum(len(indices) for _, indices in members)
    if count > domain.max_peers:
        report.add(path, f"at least {count}, the number of its machines", show(domain.max_peers))
    vectors = members[0][0].values["vectors"]
    for settings, _ in members:
        values = settings.values
        if values["kind"] != "simulated":
            report.add(settings.at("kind"), '"simulated", in a domain of version 2', show(values["kind"]))
        if values["vectors"] != vectors:
            expected = f"{vectors}, as all machines of {domain.name} have: its server tells one number"
            report.add(settings.at("vectors"), expected, show(values["vectors"]))
        elif not 1 <= vectors <= VECTORS_MAX:
            report.add(settings.at("vectors"), f"1 to {VECTORS_MAX} in a domain of version 2", show(vectors))
        if values["role"] != "peer" and not settings.faulty("role", report):
            report.add(settings.at("role"), '"peer", in a domain of version 2', show(values["role"]))
        names = values.get("profiles", (values["profile"],) * len(values["domains"]))
        profile = PROFILES.get(names[values["domains"].index(domain.name)])
        if isinstance(profile, ProfileV2) and domain.max_peers > profile.peers_limit:
            report.add(path, f"at most {profile.peers_limit}, as {profile.name} has", show(domain.max_peers))
