"""Run a shipped topology at three rates from Python and compare the latencies. The output is in measure.out.

    python examples/measure.py [DIRECTORY]

DIRECTORY (``runs`` if absent) receives one run directory for each rate.
"""

import sys

import sim

RATES_HZ = (500, 1000, 2000)


def main(directory: str = "runs") -> None:
    """Print one line for each rate: what was rung, how many doorbells an interrupt stands for, and the delivery."""
    print(f"{'rate':>6}  {'rung':>6}  {'refused':>7}  {'per interrupt':>13}  {'delivery p50':>12}")
    for rate_hz in RATES_HZ:
        overrides = {"machines.sender.parameters.rate_hz": str(rate_hz), "run.duration_s": "1.0"}
        run = sim.run("fan_in", overrides=overrides, runs=directory)
        assert run.balanced, run.problems
        summary = run.summary
        p50_us = summary["latency_ns"]["delivery"]["p50"] / 1000
        print(
            f"{rate_hz:6}  {summary['rung']:6}  {summary['refused']:7}  {summary['coalescing']:13.2f}  {p50_us:9.1f} us"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
