"""A latency in the JSON that cyclictest writes (``--json``), for its plotters and dashboards. Pure.

Each machine that was rung is a thread, in the order of the run; values are in nanoseconds (``--nsecs``). A bin of a
`Histogram` stands under its middle, at most 0.4 % off (rt-tests, cyclictest.c, write_stats; rt-utils.c, rt_write_json).
"""

from __future__ import annotations

import datetime
import email.utils
import json
from collections.abc import Mapping
from typing import Any

from sim.results.analysis.latency.histogram import Histogram


def cyclictest_json(
    histograms: Mapping[str, Histogram], *, command: str, start: datetime.datetime, duration_s: float, release: str
) -> str:
    """The text of the file.

    Args:
        histograms: by machine; those without a sample are left out.
        command: the command line of the run.
        start: when the run began.
        duration_s: how long it was measured.
        release: the kernel of the host.
    """
    threads = [_thread(number, histogram) for number, histogram in enumerate(filter(len, histograms.values()))]
    end = start + datetime.timedelta(seconds=duration_s)
    content = {
        "file_version": 1,
        "cmdline:": command,  # with a colon, as rt-utils.c writes it
        "rt_test_version:": "0",
        "start_time": email.utils.format_datetime(start),
        "end_time": email.utils.format_datetime(end),
        "return_code": 0,
        "sysinfo": {"sysname": "Linux", "release": release},
        "num_threads": len(threads),
        "resolution_in_ns": 1,
        "thread": {str(number): thread for number, thread in enumerate(threads)},
    }
    return json.dumps(content, indent=2) + "\n"


def _thread(number: int, histogram: Histogram) -> dict[str, Any]:
    columns = histogram.columns()
    counts = columns["count"].tolist()
    middles = ((columns["low"] + columns["high"]) // 2).tolist()
    cycles = sum(counts)
    return {
        "histogram": dict(zip(map(str, middles), counts, strict=True)),
        "cycles": cycles,
        "min": middles[0],
        "max": middles[-1],
        "avg": round(sum(value * count for value, count in zip(middles, counts, strict=True)) / cycles, 2),
        "cpu": number,
        "node": 0,
    }
