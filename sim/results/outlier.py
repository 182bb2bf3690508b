"""The outlier that ended a run (``[run] stop_above``): the doorbell, its latency, and its causes."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Time = Annotated[int, Meta(ge=0, le=1 << 62)]
Text = Annotated[str, Meta(max_length=1000)]


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One reason for the time that a doorbell took: its kind (`sim.results.analysis.outlier.causes.KINDS`), whose time
    it is, how much of the doorbell's time it explains, also as a ``share`` from 0 to 1, and the evidence in words.
    """

    kind: Annotated[str, Meta(max_length=40)]
    machine: Annotated[str, Meta(max_length=200)]
    time_ns: Time
    share: Annotated[float, Meta(ge=0, le=1)]
    text: Text


class Outlier(msgspec.Struct, frozen=True, kw_only=True):
    """A doorbell that took longer than the limit of the run.

    Attributes:
        metric: the latency and the percentile that were limited, such as ``total.max``.
        reached_ns: what the metric had reached: the latency of this doorbell, or the percentile.
        took_ns: the latency of this doorbell, until now if it is not complete.
        source, target, vector: who rang whom.
        intended_ns, rung_ns, delivered_ns, handled_ns: CLOCK_MONOTONIC, 0 for what there was not.
        is_explained: whether the causes explain half of that time at least.
        causes: by the time that they explain, the longest first.
    """

    metric: Annotated[str, Meta(max_length=40)]
    limit_ns: Time
    reached_ns: Time
    took_ns: Time
    is_complete: bool
    source: Annotated[str, Meta(max_length=200)]
    target: Annotated[str, Meta(max_length=200)]
    vector: Annotated[int, Meta(ge=0, le=1 << 16)]
    intended_ns: Time
    rung_ns: Time
    delivered_ns: Time
    handled_ns: Time
    is_explained: bool = False
    causes: list[Cause] = []
    kernel_trace: Text = ""
