"""Every name that a command or a function takes: the error for a misspelt one has the nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import sim
from nodes.device.profiles import profile
from nodes.errors import IvshmemError
from sim import cli
from sim.commands.catalogue import COMMANDS
from sim.commands.parameters import NameChoice
from sim.results.compare import compare
from sim.views import plots
from tests import synthetic
from tests.command import invoke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory."""
    return synthetic.finish(synthetic.pair(tmp_path_factory.mktemp("of") / "runs"), synthetic.PENDING).path


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands, those of groups among them."""
    with cli.ivsim.make_context("ivsim", ["list"], resilient_parsing=True) as context:
        for name in COMMANDS:
            command = cli.ivsim.get_command(context, name)
            assert command is not None
            yield name, command
            if isinstance(command, click.Group):
                yield from ((f"{name} {inner}", each) for inner, each in command.commands.items())


def test_every_choice_of_every_command_knows_the_nearest_name() -> None:
    found = 0
    for name, command in commands():
        for parameter in command.params:
            if not isinstance(parameter.type, click.Choice):
                continue
            assert isinstance(parameter.type, NameChoice), (name, parameter.name)
            longest = max(parameter.type.choices, key=len)
            if len(longest) < 4:  # such as 1, 2, 4 or 8
                continue
            with pytest.raises(click.BadParameter, match=f'did you mean "{longest}"'):
                parameter.type.convert(longest[:-2] + longest[-1], parameter, None)
            found += 1
    assert found > 8


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_that_is_misspelt_has_the_right_one_in_its_error(name: str) -> None:
    command = dict(commands())[name]
    options = [each for parameter in command.params for each in parameter.opts if each[:2] == "--"]
    option = max(options, key=len, default="--help")
    refused = invoke(name, f"{option}x")
    assert refused.returncode == 2
    assert f"'{option}'" in refused.stderr


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("device show acnr", "acrn"),
        ("device show qemu-dorbell", "qemu-doorbell"),
        ("device show acrn --variant revison=1", "revision"),
        ("device shw acrn", "show"),
        ("attach rign", "ring"),
        ("run doorbell_strom", "doorbell_storm"),
        ("sweep fan_im --repeat 2", "fan_in"),
        ("migrate --plan evacuat", "evacuate"),
        ("run ping_pong --set run.duratoin_s=1", "duration_s"),
        ("run ping_pong --set machines.pnig.count=2", "ping"),
        ("run ping_pong --set machines.ping.program=eco", "echo"),
        ("run ping_pong --set machines.ping.parameters.rate_h=1", "rate_hz"),
        ("run ping_pong --set machines.ping.profile=acnr", "acrn"),
        ("run two_domains --domains rihgt", "right"),
        ("explore fan_im", "fan_in"),
        ("serve --group roott", "root"),
        ("calibrate {run} --base defalt", "default"),
        ("show {run}x", "{run}"),
        ("show {run} --latency delivry", "delivery"),
        ("report {run}x", "{run}"),
        ("trace {run}x", "{run}"),
        ("top {run}x", "{run}"),
        ("console {run}x linux", "{run}"),
        ("calibrate {run}x", "{run}"),
        ("compare {run} {run}x", "{run}"),
        ("compare {run} {run} --fail-if delivry.p99:+10%", "delivery.p99"),
        ("compare {run} {run} --fail-if p9999:+10%", "p99.99"),
        ("compare {run} {run} --fail-if doorbels_per_s:+10%", "doorbells_per_s"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_nearest(text: str, meant: str, made: Path) -> None:
    refused = invoke(*text.format(run=made).split())
    assert refused.returncode == 2
    told = refused.stderr.replace("Did", "did").replace("'", '"')
    assert f'did you mean "{meant.format(run=made)}"?' in told


def test_a_run_without_its_time_or_its_parent_is_the_latest(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made.parent.name == "runs"
    monkeypatch.chdir(made.parent.parent)
    for given in ("runs/made", "made"):
        assert f'did you mean "runs/{made.name}"?' in invoke("show", given).stderr
    assert "`ivsim run` prints the one that it makes" in invoke("show", "nothing/like/it").stderr


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda run: run.table("sampels"), "samples"),
        (lambda run: run.flows("machin"), "machine"),
        (lambda run: run.matrix(what="refusd"), "refused"),
        (lambda run: run.matrix()["ping", "ecko"], "echo"),
        (lambda run: run.latency(latencies=["delivry"]), "delivery"),
        (lambda run: run.histogram("drianed"), "drained"),
        (lambda run: run.histogram("lag", by="machin"), "machine"),
        (lambda run: plots.cumulative(run, "totl"), "total"),
        (lambda run: compare(run.path, run.path)["coalescin"], "coalescing"),
        (lambda _: sim.serve(dialect="legcy"), "legacy"),
        (lambda _: profile("qemu-dorbell"), "qemu-doorbell"),
    ],
)
def test_a_misspelt_name_in_python_is_answered_by_the_nearest(
    call: Callable[[sim.Run], object], meant: str, made: Path
) -> None:
    with pytest.raises(IvshmemError, match=f'did you mean "{meant}"'):
        call(sim.open(made))
