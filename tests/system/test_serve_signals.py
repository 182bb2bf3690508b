"""Commands that say that they are ready: from then on a signal ends them as it should, however often it comes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.test_serve import PATIENCE_S


def commands(place: Path) -> dict[str, tuple[list[str], str, int]]:
    """Their arguments, their first words, and the exit code when a signal ends them."""
    sessions = sorted(Path(__file__).parent.parent.joinpath("golden", "sessions").glob("*.txt"))
    return {
        "serve": (["serve", "-F", "-S", f"{place}/s", "-M", place.name, "-l", "4K"], "serving", 0),
        "record": (
            ["record", "-S", f"{place}/s", "-L", f"{place}/p", "-o", f"{place}/file"],
            "recording clients of",
            0,
        ),
        "replay": (["replay", str(sessions[0]), "-S", f"{place}/s"], "waiting for a client at", 1),
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("name", ["serve", "record", "replay"])
def test_signals_that_come_again_and_again_do_not_change_how_it_ends(
    name: str, number: signal.Signals, short_path: Path
) -> None:
    arguments, ready, code = commands(short_path)[name]
    with subprocess.Popen([sys.executable, "-m", "sim", *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(ready)
        deadline_s = time.monotonic() + PATIENCE_S
        while process.poll() is None:
            assert time.monotonic() < deadline_s, "it does not end"
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        assert process.returncode == code
        assert "Traceback" not in process.stderr.read()
    assert [path.name for path in short_path.iterdir()] == (["file"] if name == "record" else [])


def test_a_server_that_nohup_started_stays_when_the_terminal_goes(short_path: Path) -> None:
    command = ["nohup", sys.executable, "-m", "sim", "serve", "-F", "-v", "-S", f"{short_path}/s", "--memfd"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("serving"):
            assert line.startswith("nohup: "), line
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        assert ignored >> (signal.SIGHUP - 1) & 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert "ended with 0 clients" in process.stderr.read()
