"""Two peers of ivshmem v2 bring a link up by their States, and one hears that the other has gone.

python examples/v2_link.py
"""

import sim

RESET, INIT, READY = 0, 1, 2
NAMES = {RESET: "RESET", INIT: "INIT", READY: "READY"}


def bring_up(peer: sim.Peer, other: int) -> None:
    """One step: INIT while the other is not there, READY once it is at least INIT."""
    wanted = READY if peer.states[other] >= INIT else INIT
    peer.state = max(peer.state, wanted)  # interrupts the other


def use_link(left: sim.Peer, right: sim.Peer) -> None:
    """Bring the link up, and send a frame."""
    left.wait_for_peers(1)
    right.wait_for_peers(1)
    while [left.state, right.state] != [READY, READY]:
        bring_up(left, right.id)
        bring_up(right, left.id)
    print("both are", *(NAMES[state] for state in left.states))
    right.sections.own[:5] = b"hello"  # no other peer can write there
    print("left reads", bytes(left.sections.output(right.id)[:5]))


def main() -> None:
    """Let one side go while the other stays."""
    with (
        sim.serve(size="64K", vectors=1, dialect="v2", max_peers=2, output_size="4K", protocol=1) as server,
        server.connect(timeout=60) as left,
    ):
        with server.connect(timeout=60) as right:
            use_link(left, right)
        while not any(change.kind == "left" for change in left.events()):
            left.wait(0)  # a leave interrupts those that stay
        print("now they are", *(NAMES[state] for state in left.states))


if __name__ == "__main__":
    main()
