from sim.async_client import AsyncPeer as AsyncPeer
from sim.async_client import connect_async as connect_async
from sim.client import Peer as Peer
from sim.client import connect as connect
from sim.results import Run as Run
from sim.results import open as open
from sim.results.compare import compare as compare
from sim.runner import run as run
from sim.server import Server as Server
from sim.server import serve as serve
from sim.server_process import ServerProcess as ServerProcess
from sim.server_process import serve_process as serve_process
from sim.sweeps.run_sweep import sweep as sweep

__all__ = [
    "AsyncPeer",
    "Peer",
    "Run",
    "Server",
    "ServerProcess",
    "compare",
    "connect",
    "connect_async",
    "open",
    "run",
    "serve",
    "serve_process",
    "sweep",
]
