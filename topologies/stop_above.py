"""The limit that ends a run: ``[run] stop_above``, as in ``5ms``, ``p99_9=500us`` or ``delivery.max=2ms``."""

from __future__ import annotations

import re

from msgspec import Struct

from nodes.errors import UsageError
from topologies.schedule import UNITS_NS

STOP_ABOVE_PATTERN = (
    r"^((?:(?:lag|delivery|handling|raw|total)\.)?(?:(?:p50|p90|p99|p99[._]9|p99[._]99|max)=)?"
    r"[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|ms|s))?\Z"
)
_LIMIT = re.compile(r"(?:([a-z]+)\.)?(?:([a-z0-9._]+)=)?([0-9.]+)(ns|us|ms|s)", re.ASCII)


class StopAbove(Struct, frozen=True):
    """A run ends when ``point`` of ``latency`` is above ``limit_ns``: one latency for ``max``, else a percentile."""

    latency: str
    point: str
    limit_ns: int

    @property
    def metric(self) -> str:
        """Its name among the metrics, without a unit: ``total.max``."""
        return f"{self.latency}.{self.point}"


def parse_stop_above(text: str) -> StopAbove | None:
    """The limit that ``[run] stop_above`` names; None for "".

    Raises:
        UsageError: the text is no limit.
    """
    if not text:
        return None
    found = _LIMIT.fullmatch(text)
    if found is None or re.match(STOP_ABOVE_PATTERN, text, re.ASCII) is None:
        raise UsageError(
            f"stop_above: expected a limit such as 5ms, p99_9=500us or delivery.max=2ms, got {text[:80]!r}"
        )
    latency, point, number, unit = found.groups()
    limit_ns = round(float(number) * UNITS_NS[unit])
    return StopAbove(latency or "total", (point or "max").replace(".", "_"), limit_ns)
