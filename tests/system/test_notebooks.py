"""Each notebook runs from top to bottom, its claims hold, and it was committed with its outputs."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
from pathlib import Path

import matplotlib.image
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The claims hold for any length and number: these values replace those of the cell tagged "parameters".
SHORTER = {
    "interrupt_latency": "measured_s = 0.3",
    "doorbell_storm": "measured_s, sizes, vectors, delays_us = 0.3, (2, 6), (1, 4), (0, 10_000)",
    "migration_blockers": "rates_hz, moves = (500, 4000), 2",
    "scaling_study": "senders, repeats = (1, 8), 2",
    "prediction": "measured_s, policy = 0.3, {}\nscenarios = {name: scenarios[name] for name in ('fan_in', 'hotspot')}",
    "protocol_testing": "seeds = 100",
    "resource_profile": "measured_s, rates_hz, crowds = 0.6, (1000.0, None), ((4, 1), (12, 8), (24, 1))",
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def shortened(path: Path) -> nbformat.NotebookNode:
    notebook = read(path)
    if path.stem in SHORTER:
        (place,) = (at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SHORTER[path.stem]))
    return notebook


def test_there_are_notebooks():
    assert SHORTER.keys() <= {path.stem for path in NOTEBOOKS}


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs the cells of a notebook in a kernel, in a directory of its own, which it returns."""
    # The kernel's history and connection file belong in the directory that the test removes.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    here = tmp_path / "here"
    here.mkdir()

    def execute(notebook):
        path = {"metadata": {"path": str(here)}}
        client = NotebookClient(notebook, timeout=100, kernel_name="python3", resources=path)
        # execute() would leave its event loop open.
        asyncio.run(client.async_execute())
        return here

    return execute


PEER_IN_A_CELL = """
import sim
server = sim.serve()
async with sim.connect_async(server.path, vectors=2, timeout=60) as peer:
    echo = server.machine("echo")
    await peer.wait_for_peers(1)
    peer.ring(echo.id, 1)
    interrupt = await peer.wait(1)
server.close()
tuple(interrupt)
"""


def test_a_peer_uses_the_loop_of_the_kernel(execute):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PEER_IN_A_CELL)])
    execute(notebook)
    assert notebook.cells[0].outputs[0].data["text/plain"] == "(1, 1, 0)"


@pytest.mark.sample(1)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_its_claims_hold(path, execute):
    notebook = shortened(path)
    notebook.cells.append(nbformat.v4.new_code_cell("import os; os.getpid()"))
    here = execute(notebook)
    assert list(here.iterdir()) == []
    (pid,) = (output.data["text/plain"] for output in notebook.cells[-1].outputs)
    assert not [name for name in os.listdir("/dev/shm") if pid in name.split("-")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_can_be_read_without_running_it(path):
    cells = read(path).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in shown} <= {"execute_result", "display_data"}
    assert any("image/png" in output.data for output in shown)
    # The background is white: on a dark page, black letters on a transparent one cannot be read.
    for output in shown:
        if "image/png" in output.data:
            picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(output.data["image/png"])))
            assert (picture[0, 0] == 1).all()
    # No path or name of the host on which it was run.
    text = path.read_text()
    assert not re.search(r"/(root|home|tmp|work|Users)/", text)
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4


RUN_IN_A_CELL = """%%time
import sim
sim.run("ping_pong", overrides={"run.duration_s": 0.6, "run.warmup_s": 0.1}, runs="runs", resources_every_s=0)
"""
PROGRAM_IN_A_CELL = """
from pathlib import Path
from nodes.guest import NOW

ROUNDS = 3

def announce(guest, *, to: list[int]):
    for _ in range(ROUNDS):
        guest.ring(1)
        yield NOW

Path("t.toml").write_text('''
[run]
duration_s = 0.3
[machines.sender]
program = "announce"
parameters = { to = [1] }
[machines.receiver]
program = "idle"
''')
sim.run("t.toml", runs="runs", programs=announce).figures.rung
"""


def test_a_run_shows_its_progress_below_its_cell_and_a_cell_defines_a_program(execute):
    """And in the time that %%time tells; the result is a table."""
    cells = [nbformat.v4.new_code_cell(text) for text in (RUN_IN_A_CELL, PROGRAM_IN_A_CELL)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    execute(notebook)
    assert notebook.cells[1].outputs[-1].data["text/plain"] == "3"
    progress, *others = notebook.cells[0].outputs
    assert (progress.output_type, "<progress value=" in progress.data["text/html"]) == ("display_data", True)
    assert re.search(r"> <span>(done, 2 machines|[a-z]+, [0-2]/2 machines up)", progress.data["text/html"])
    assert any("Wall time" in each.get("text", "") for each in others)
    (result,) = (each for each in others if each.output_type == "execute_result")
    assert "<table>" in result.data["text/html"]
