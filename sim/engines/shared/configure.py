"""Makes the configuration of each worker from the topology."""

from __future__ import annotations

from sim.engines.shared.configuration import DeviceConfiguration, WorkerConfiguration
from topologies import Machine, Machines, Topology, Trace
from topologies.stop_above import parse_stop_above

SECOND_NS = 1_000_000_000
COLLECTION_NS_MIN, COLLECTION_SHARE = 50_000, 16


def configure_worker(
    topology: Topology,
    machine: Machine,
    *,
    name: str,
    row: int,
    devices: tuple[DeviceConfiguration, ...],
    socket: str = "",
) -> WorkerConfiguration:
    """The configuration of one incarnation of ``machine``, whose first device writes the recording number ``row``.

    An external machine is awaited on ``socket``.
    """
    plain, peers, traces = {}, {}, {}
    for parameter, value in machine.parameters.items():
        match value:
            case Machines():
                peers[parameter] = tuple(value)
            case Trace(machines=machines, doorbells=doorbells):
                traces[parameter] = tuple(machines), doorbells
            case _:
                plain[parameter] = value
    scheduling = machine.scheduling
    return WorkerConfiguration(
        name=name,
        kind=machine.kind,
        machine=row,
        vectors=machine.vectors,
        role=machine.role,
        profiles=tuple(machine.profile_in(domain) for domain in machine.domains),
        program=machine.program,
        parameters=plain,
        peers=peers,
        traces=traces,
        seed=f"{topology.seed}/{machine.name}",
        sample_every=topology.run.sample_every,
        load=tuple((round(phase.duration_s * SECOND_NS), *phase.load) for phase in topology.phases),
        cpus=scheduling.cpus,
        policy=scheduling.policy,
        priority=scheduling.priority,
        nice=scheduling.nice,
        devices=devices,
        socket=socket,
        ready_timeout_s=machine.ready_timeout_s if machine.kind == "external" else 0.0,
        foreign=tuple(machine.foreign),
        collections_from_ns=_collections_from_ns(topology),
    )


def _collections_from_ns(topology: Topology) -> int:
    """Garbage collections of this length may explain a part of an outlier; 0 for a run that does not end at one."""
    limit = parse_stop_above(topology.run.stop_above)
    return 0 if limit is None else max(COLLECTION_NS_MIN, limit.limit_ns // COLLECTION_SHARE)
