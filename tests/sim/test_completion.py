"""What a shell completes: commands, topologies, runs, keys."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from sim.cli import ivsim
from sim.commands import completion
from sim.commands.catalogue import COMMANDS
from topologies import shipped

TOPOLOGY = "[machines.one]\nprogram = 'echo'\nparameters = { to = 'one' }\n"


def complete(line: str) -> dict[str, str]:
    """The completions of the last word of a line, each with its kind."""
    _, *words = line.split(" ")
    found = ShellComplete(ivsim, {}, "ivsim", "_IVSIM_COMPLETE").get_completions(words[:-1], words[-1])
    return {each.value: each.type for each in found}


def test_commands_and_options() -> None:
    assert list(complete("ivsim ")) == list(COMMANDS)
    assert list(complete("ivsim re")) == ["report", "record", "replay"]
    assert {"--version", "--help"} <= complete("ivsim --").keys()
    assert list(complete("ivsim run --eng")) == ["--engine"]
    assert "qemu-doorbell" in complete("ivsim device show qemu")


@pytest.mark.parametrize("command", ["run", "sweep", "explore", "graph", "migrate --plan", "validate"])
def test_topologies_that_ship_and_else_files(command: str) -> None:
    assert list(complete(f"ivsim {command} ")) == [name for name, _ in shipped()]
    assert list(complete(f"ivsim {command} pi")) == ["ping_pong"]
    assert complete(f"ivsim {command} ./my") == {"./my": "file"}


@pytest.mark.parametrize("command", ["show", "report", "trace", "console", "top", "compare", "compare runs/2"])
def test_runs_the_latest_first_and_else_directories(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete(f"ivsim {command} ") == {"": "dir"}
    for name in ("1", "2", "not-a-run"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("1", "2"):
        (tmp_path / "runs" / name / "manifest.json").touch()
    assert list(complete(f"ivsim {command} ")) == ["runs/2", "runs/1"]
    assert list(complete(f"ivsim {command} runs/1")) == ["runs/1"]
    assert complete(f"ivsim {command} /tmp/") == {"/tmp/": "dir"}


def test_keys_of_the_topology_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(TOPOLOGY)
    (tmp_path / "broken.toml").write_text("[machines.one]\nprogram = 'ecko'\n")
    keys = complete(f"ivsim run {tmp_path}/t.toml --set ")
    assert {"seed=", "run.duration_s=", "memory.size=", "machines.one.count=", "machines.one.parameters.to="} <= set(
        keys
    )
    assert complete(f"ivsim sweep {tmp_path}/t.toml --set machines.one.par") == {"machines.one.parameters.to=": "plain"}
    assert complete(f"ivsim run {tmp_path}/t.toml --set seed=1 --set machines.one.cou") == {
        "machines.one.count=": "plain"
    }
    for unknown in ("", f"{tmp_path}/broken.toml ", "no_such "):
        assert complete(f"ivsim run {unknown}--set machines.one.cou") == {}
        assert complete(f"ivsim run {unknown}--set run.dur") == {"run.duration_s=": "plain"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_takes_the_script_and_leaves_no_space_after_a_key() -> None:
    assert "compopt -o nospace" in completion._BashKeys.source_template
    ivsim_here = Path(sys.executable).with_name("ivsim")
    script = f"""
        eval "$(_IVSIM_COMPLETE=bash_source {ivsim_here})"
        compopt() {{ printf "compopt %s %s\\n" "$@"; }}
        COMP_WORDS=({ivsim_here} run ping_pong --set run.dur); COMP_CWORD=4
        _ivsim_completion {ivsim_here}; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split("\n") == ["compopt -o nospace", "run.duration_s=", ""]
