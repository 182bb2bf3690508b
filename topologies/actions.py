"""The actions of a timeline on machines, servers and the run: one struct for each action.

Everything else derives from these structs: the keys and checks of a ``[[timeline]]`` entry, its JSON Schema, the list
in the starter file, the reference table, the message to a worker and the choice of the handler. A new action is one
struct here and one handler: a method ``_NAME`` of `sim.coordination.actions.Actions`, or, for a `WorkerAction`, of
`sim.engines.shared.worker_actions.WorkerActions`.

The docstring of a struct is the text of the reference. Its fields are the keys of the entry beside those that
every entry takes; a field without a default is required. A key that several actions take has one type, declared once.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from msgspec import Meta

from topologies.language.validated import NAME_PATTERN, Validated

DomainName = Annotated[str, Meta(pattern=NAME_PATTERN, extra={"refers_to": "domains"})]
Vectors = Annotated[
    tuple[Annotated[int, Meta(ge=0, le=2047)], ...],
    Meta(min_length=1, max_length=2048, description="Which vectors; if absent, all.", extra={"refers_to": "vectors"}),
]
MalformedMessage = Literal[
    "bad_peer", "negative_peer", "left_itself", "left_unknown", "memory_again", "memory_missing", "half_message"
]
Fault = Literal["target_dies", "source_dies", "server_gone", "late_memory", "cancel"]


def _name(struct: str) -> str:
    """The value of ``do`` for a struct: ``stop_server`` for ``StopServer``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", struct).lower()


class Action(Validated, frozen=True, tag=_name):
    """An action without its time and machines (`topologies.schedule.TimelineEntry` has those)."""

    removes: ClassVar[bool] = False
    """Whether the machine is absent afterwards, so that it can join again."""

    @property
    def do(self) -> str:
        """The action's name in a topology."""
        return str(self.__struct_config__.tag)


class MachineAction(Action, frozen=True):
    """An action on machines."""

    before_ready: ClassVar[bool] = False
    """Whether it can be done to a machine that has not joined yet."""
    while_migrating: ClassVar[bool] = False
    needs_msix: ClassVar[bool] = False


class WorkerAction(MachineAction, frozen=True):
    """An action that the coordinator only passes on: the worker carries it out."""


class ServerAction(Action, frozen=True):
    """An action on the server of one domain."""

    domain: Annotated[
        DomainName | None, Meta(description="The domain whose server it is; if absent, the only one.")
    ] = None


class RunAction(Action, frozen=True):
    """An action on the run as a whole."""


class Join(MachineAction, frozen=True):
    """An absent machine connects, and its program starts."""


class Leave(MachineAction, frozen=True):
    """The program ends, the machine disconnects, and its process exits."""

    removes = True
    before_ready = True


class Kill(MachineAction, frozen=True):
    """The machine's process gets SIGKILL."""

    removes = True
    before_ready = True
    while_migrating = True


class Stall(MachineAction, frozen=True):
    """The machine's process gets SIGSTOP: the whole machine stands still."""

    before_ready = True


class Resume(MachineAction, frozen=True):
    """The machine's process gets SIGCONT; counters that were filled get their former values back."""

    before_ready = True


class Slow(WorkerAction, frozen=True):
    """The machine takes each interrupt later by this delay from now on; 0 ends it."""

    delay_us: Annotated[float, Meta(ge=0, le=1e9, description="How much later an interrupt is taken, in microseconds.")]


class Mask(WorkerAction, frozen=True):
    """The driver masks MSI-X vectors: their doorbells set pending bits."""

    vectors: Vectors | None = None
    needs_msix = True


class Unmask(WorkerAction, frozen=True):
    """The driver unmasks MSI-X vectors: pending ones fire."""

    vectors: Vectors | None = None
    needs_msix = True


class Reset(WorkerAction, frozen=True):
    """The device is reset, the driver probes it again, and the program starts anew."""


class Unplug(MachineAction, frozen=True):
    """The device is unplugged; the machine runs on without it."""

    removes = True
    while_migrating = True


class Fill(MachineAction, frozen=True):
    """The machine stands still and its eventfd counters are full: doorbells at it are refused."""

    vectors: Vectors | None = None


class Deafen(WorkerAction, frozen=True):
    """The machine stops reading what the server sends."""


class Garble(MachineAction, frozen=True):
    """The server sends the machine a malformed message."""

    message: Annotated[MalformedMessage, Meta(description="What is malformed.")] = "bad_peer"


class Migrate(MachineAction, frozen=True):
    """The machine migrates to a new process."""

    to_domain: Annotated[DomainName | None, Meta(description="The domain it migrates to; if absent, its own.")] = None
    hand_over: Annotated[bool, Meta(description="Whether the new process takes over the old one's connection.")] = False
    fault: Annotated[
        Fault | None,
        Meta(
            description=(
                "What goes wrong in the migration. `late_memory`: the state arrives before the memory, which only "
                "devices of 2012 allow."
            )
        ),
    ] = None
    while_migrating = True


class StopServer(ServerAction, frozen=True):
    """The server closes all connections and ends."""


class StartServer(ServerAction, frozen=True):
    """A new server listens on the same socket; no machine is connected to it."""


class End(RunAction, frozen=True):
    """The run ends now, before its time."""


ACTIONS: dict[str, type[Action]] = {
    _name(name): struct
    for name, struct in list(vars().items())
    if isinstance(struct, type) and issubclass(struct, Action) and not struct.__subclasses__()
}
"""Every action by its name in a topology, in the order of declaration."""


@functools.cache
def fields_of(action: type[Action]) -> dict[str, Any]:
    """The own keys of an action with their annotations, in the order of declaration."""
    hints = get_type_hints(action, include_extras=True)
    return {name: hints[name] for name in action.__struct_fields__}


def refers_to(annotation: Any) -> str:
    """The kind of thing that a key's values name, "domains" or "vectors"; "" for other keys."""
    for meta in getattr(annotation, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.extra is not None and "refers_to" in meta.extra:
            return str(meta.extra["refers_to"])
    return next(filter(None, map(refers_to, get_args(annotation))), "")
