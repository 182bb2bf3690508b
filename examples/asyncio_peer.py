"""Three peers in one asyncio loop: one asks, two answer, and a task shows who joins and leaves.

python examples/asyncio_peer.py
"""

import asyncio
import contextlib

import sim

QUESTION, ANSWER = 0, 1  # the vectors


async def answer(peer: sim.AsyncPeer, asker: int) -> None:
    """Write the own ID where the asker looks for it, and ring it; for ever."""
    while True:
        await peer.wait(QUESTION)
        peer.memory[peer.id] = peer.id
        peer.ring(asker, ANSWER)


async def show(peer: sim.AsyncPeer) -> None:
    """Print the changes of the peers."""
    async for change in peer.changes():
        print(change)


async def main() -> None:
    """Ask twice."""
    with sim.serve() as server:
        async with contextlib.AsyncExitStack() as stack:
            asker, *others = [
                await stack.enter_async_context(sim.connect_async(server.path, vectors=2, timeout=60)) for _ in range(3)
            ]
            tasks = [asyncio.create_task(show(asker))]
            tasks += [asyncio.create_task(answer(peer, asker.id)) for peer in others]
            peers = await asker.wait_for_peers(2)
            for _ in range(2):
                asker.memory[:16] = bytes(16)
                for peer in peers:
                    asker.ring(peer, QUESTION)
                while asker.memory[1:3] != bytes([1, 2]):
                    await asker.wait(ANSWER)
                print("answers of", list(asker.memory[1:3]))
            for task in tasks:
                task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
