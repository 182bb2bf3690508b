"""Tests of a protocol on ivshmem, with the fixtures that ivshmem-sim brings: replace `Driver` by your own."""

import struct


class Driver:
    """The code under test: it sends numbers through the memory, and rings vector 1."""

    def __init__(self, peer) -> None:
        self.peer = peer

    def send(self, to: int, number: int) -> None:
        struct.pack_into("<Q", self.peer.memory, 8 * to, number)
        self.peer.ring(to, 1)

    def receive(self) -> int:
        self.peer.wait(1)
        return struct.unpack_from("<Q", self.peer.memory, 8 * self.peer.id)[0]


def test_two_drivers_exchange_a_number(ivshmem_peer):
    sender, receiver = Driver(ivshmem_peer()), Driver(ivshmem_peer())
    sender.send(receiver.peer.id, 42)
    assert receiver.receive() == 42


def test_simulated_machines_answer_on_every_vector(ivshmem_server, ivshmem_machines, ivshmem_peer):
    ivshmem_server(vectors=4, size="64K")
    peer = ivshmem_peer()
    first, second = ivshmem_machines("echo", count=2, to=[peer.id])
    for vector in range(4):
        for machine in (first, second):
            peer.ring(machine.id, vector)
            assert peer.wait(vector).doorbells == 1


def test_a_real_qemu_takes_part(ivshmem_qemu, ivshmem_peer):
    peer = ivshmem_peer()
    qemu = ivshmem_qemu()
    qemu.ring(peer.id, 1)
    assert peer.wait(1).vector == 1
    peer.memory[64:68] = b"ping"
    assert qemu.read(2, 64).to_bytes(4, "little") == b"ping"
    peer.ring(qemu.id, 0)
    assert qemu.wait(0).vector == 0
