"""`ivsim graph`: a picture of a topology. Starts no process."""

from __future__ import annotations

from pathlib import Path

import click

import topologies
from sim.commands.options import overrides_option, programs_option, topology_argument
from sim.commands.output import write_file
from sim.commands.parameters import FILE, NameChoice

FORMATS = {".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot", ".gv": "dot", ".svg": "svg"}


@click.command("graph")
@topology_argument
@overrides_option
@programs_option
@click.option(
    "--format", "form", type=NameChoice(["mermaid", "dot", "svg"]), help="By default mermaid, or by the suffix of FILE."
)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the picture to FILE.")
@click.option("--each", is_flag=True, help="Draw every machine of large groups, too.")
def graph(
    topology: str,
    overrides: dict[str, str],
    programs: tuple[Path, ...],
    form: str | None,
    output: Path | None,
    each: bool,
) -> None:
    """Draw TOPOLOGY, a file or the name of a shipped one: its machines, domains, doorbells and timeline.

    A group of more than eight machines is one node, unless --each is given. Browsers show SVG, viewers of Markdown
    draw Mermaid, and Graphviz draws DOT.
    """
    from sim.views.graph import dot, draw, mermaid, svg

    if form is None and output is not None and output.suffix not in FORMATS:
        raise click.UsageError(f"{output}: expected a name that ends in {', '.join(FORMATS)}, or --format")
    loaded = topologies.load(topology, overrides, programs)
    chosen = form or (FORMATS[output.suffix] if output else "mermaid")
    text = {"mermaid": mermaid, "dot": dot, "svg": svg}[chosen](draw(loaded, each=each))
    if output is None:
        click.echo(text, nl=False)
        return
    write_file(output, text)
    click.echo(f"{output} written", err=True)
