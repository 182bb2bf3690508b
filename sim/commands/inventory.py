"""`ivsim ps` and `ivsim clean`: the list of what is on this host with its owners, and the removal of leftovers."""

from __future__ import annotations

import click

from sim.commands.output import echo_json
from sim.exit_codes import FAILED


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def ps(as_json: bool) -> None:
    """List what this user's runs and servers have on this host now, and which process owns it.

    That is: runs, servers, named memory, private directories and processes. `orphaned` is what a killed owner left
    behind; `ivsim clean` removes it.
    """
    from rich.console import Console

    from sim.host.inventory import inventory
    from sim.views.columns import print_columns

    items = inventory()
    if as_json:
        echo_json(items)
        return
    if not items:
        click.echo("nothing of yours is here")
        return
    console = Console()
    rows = [("what", "state", "process", "name")]
    styles = {}
    for item in items:
        rows.append((item.kind, item.state, "-" if item.pid is None else str(item.pid), item.name))
        if item.state != "in use":
            styles[len(rows) - 1] = "yellow"
        rows += [("", "", "", f"  {text}") for text in item.detail]
    print_columns(rows, console, left=(0, 1, 3), styles=styles)


@click.command("clean")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def clean(dry_run: bool) -> None:
    """Remove memory, private directories and processes whose owner was killed.

    Only what is proved to have no owner is removed: no process holds its lock, and no process uses it. A run also
    removes what other runs left behind, before it starts; run directories with results are never removed. The exit
    code is 1 when something could not be removed.
    """
    from sim.host.inventory import inventory, remove

    left = [item for item in inventory() if item.state == "orphaned"]
    failed = False
    for item in sorted(left, key=lambda item: item.kind != "process"):  # what a process uses goes after it
        done = "would remove" if dry_run else "removed" if remove(item) else "could not remove"
        failed |= done == "could not remove"
        click.echo(f"{done} {item.kind} {item.name}")
    if not left:
        click.echo("nothing was left behind")
    if failed:
        raise click.exceptions.Exit(FAILED)
