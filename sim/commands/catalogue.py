"""The commands of `ivsim`: where each is, what it does in a line, and an example.

`ivsim --help` and completion print this and load no command. A command is loaded when it is used.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One command: its line in the help, the last line of its own help, and ``module:function`` within `sim.commands`.

    By default the module and the function have the name of the command.
    """

    summary: str
    example: str
    target: str = ""


COMMANDS = {
    "run": Entry("Run a topology and show the result.", "ivsim run ping_pong --set run.duration_s=2"),
    "show": Entry("Show the result of a run again.", "ivsim show runs/RUN", "run:show"),
    "sweep": Entry(
        "Run a topology with every combination of some values.", "ivsim sweep fan_in --set machines.sender.count=1,2,4"
    ),
    "explore": Entry(
        "Run many seeds under virtual time and look for a broken invariant.",
        "ivsim explore bursty --seeds 0..99 --jobs 2",
    ),
    "calibrate": Entry("Read the costs of virtual time off real runs.", "ivsim calibrate runs/RUN -o host.toml"),
    "scheduler": Entry(
        "Start the scheduler of a cluster of hosts.",
        "ivsim scheduler --host 192.0.2.1 --tls-ca ca.pem --tls-cert host.pem --tls-key host.key",
        "cluster:scheduler",
    ),
    "worker": Entry(
        "Start a worker of a cluster, which runs the jobs of its scheduler.",
        "ivsim worker tcp://127.0.0.1:8786",
        "cluster:worker",
    ),
    "graph": Entry("Draw a topology: its machines, and which ring which.", "ivsim graph fan_in -o fan_in.svg"),
    "migrate": Entry("Plan how a topology's machines could move to another host.", "ivsim migrate --plan evacuate"),
    "compare": Entry("Compare two runs.", "ivsim compare runs/BEFORE runs/AFTER --fail-if p99:+10%"),
    "report": Entry("Write a run as one HTML page.", "ivsim report runs/RUN -o run.html"),
    "trace": Entry("Write a run as a trace that Perfetto opens.", "ivsim trace runs/RUN -o run.json.gz"),
    "top": Entry("Watch a run of this host while it lasts.", "ivsim top --once"),
    "console": Entry("Show the console of a guest, live while its run lasts.", "ivsim console runs/RUN linux"),
    "ps": Entry("List runs, servers, memory and what was left behind on this host.", "ivsim ps --json", "inventory:ps"),
    "clean": Entry("Remove what killed runs and servers left behind.", "ivsim clean --dry-run", "inventory:clean"),
    "serve": Entry("Run an ivshmem server, as ivshmem-server does.", "ivsim serve -F -S /tmp/server.sock -l 4M -n 2"),
    "attach": Entry(
        "Connect to a server as a peer, interactively or in a script.", "ivsim attach -S /tmp/server.sock peers"
    ),
    "ethernet": Entry(
        "Join an Ethernet over ivshmem v2 with a network interface of this host.",
        "ivsim ethernet -S /tmp/server.sock --tap ivshmem0",
    ),
    "record": Entry(
        "Record what a server and its clients send.",
        "ivsim record -S /tmp/server.sock -L /tmp/recorded.sock -o session",
        "capture:record",
    ),
    "replay": Entry(
        "Replay a recorded server to a client under test.",
        "ivsim replay session -S /tmp/replayed.sock",
        "capture:replay",
    ),
    "explain": Entry(
        "Explain a recorded session, and what is wrong with it.", "ivsim explain session", "capture:explain_session"
    ),
    "validate": Entry("Check a topology without running it.", "ivsim validate topology.toml", "topology:validate"),
    "list": Entry(
        "Show the topologies that ship, or a reference of the language.",
        "ivsim list --metrics",
        "topology:list_shipped",
    ),
    "init": Entry("Write a commented topology to start from.", "ivsim init topology.toml", "topology:init"),
    "schema": Entry("Print the JSON Schema of topologies.", "ivsim schema > topology.schema.json", "topology:schema"),
    "device": Entry("Describe the simulated PCI devices.", "ivsim device show qemu-doorbell"),
    "conformance": Entry(
        "Compare the simulated device with a real QEMU, operation by operation.",
        "ivsim conformance --seed 1",
        "device:conformance",
    ),
    "agree": Entry(
        "Run a topology simulated and with real QEMUs, and compare.",
        "ivsim agree doorbell_storm --set run.duration_s=1",
    ),
}

INNER_EXAMPLES = {
    "attach peers": "ivsim attach -S /tmp/server.sock peers --json",
    "attach ring": "ivsim attach -S /tmp/server.sock ring 1 0 --count 100 --every 10ms",
    "attach wait": "ivsim attach -S /tmp/server.sock wait --vector 0 --timeout 5s",
    "attach watch": "ivsim attach -S /tmp/server.sock watch --count 10 --json",
    "attach state": "ivsim attach -S /tmp/server.sock state 1",
    "attach peek": "ivsim attach -S /tmp/server.sock peek 0x1000 64",
    "attach poke": "ivsim attach -S /tmp/server.sock poke 0x1000 0xdeadbeef 4",
    "attach fill": "ivsim attach -S /tmp/server.sock fill 0 4096 0",
    "attach load": "ivsim attach -S /tmp/server.sock load 0 frame.bin",
    "attach save": "ivsim attach -S /tmp/server.sock save 0 4096 frame.bin",
    "device list": "ivsim device list",
    "device cells": "ivsim device cells",
    "device odd": "ivsim device odd",
    "device show": "ivsim device show qemu-1.1-intx --vectors 4",
}
"""The last line of the help of each command of a group."""
