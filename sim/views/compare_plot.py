"""The picture of a comparison: the percentiles of both runs, delivery and total."""

from __future__ import annotations

from pathlib import Path

from nodes.errors import UsageError
from sim.kernel.shortage import error_of_path
from sim.results.compare import Comparison


def save(comparison: Comparison, path: Path) -> None:
    """Draw it into a file, whose ending says which kind (.png, .svg).

    Raises ``UsageError`` without matplotlib or without samples, ``HostError`` when it cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("pictures need matplotlib: pip install 'ivshmem-sim[notebook]'") from error
    from sim.views.plots import percentiles

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, latency in zip(figure.subplots(1, 2, sharey=True), ("delivery", "total"), strict=True):
        for name, run in (("A", comparison.a), ("B", comparison.b)):
            before = len(axes.lines)
            percentiles(run, latency, axes=axes)
            for line in axes.lines[before:]:
                line.set_label(f"{name}: {run.path.name}")
        axes.set_title(latency, fontsize="medium")
        axes.set_ylabel("")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise error_of_path(error, f"{path}: the picture cannot be written") from error
