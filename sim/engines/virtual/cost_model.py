"""What things cost under virtual time: a model that is data (``models/*.toml``), drawn from with the run's seed."""

from __future__ import annotations

import functools
import random
import tomllib
from array import array
from bisect import bisect_right
from collections.abc import Callable
from importlib import resources
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from nodes.errors import UsageError
from nodes.spelling import did_you_mean

DEFAULT = "default"
DRAWN = 1 << 12
TIME_NS_MAX = 60_000_000_000

Nanoseconds = Annotated[int, Meta(ge=0, le=TIME_NS_MAX)]
Quantile = tuple[Annotated[float, Meta(ge=0, le=1)], Nanoseconds]


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cost by its quantiles: (share, nanoseconds) pairs in ascending order; in between it is linear."""

    quantiles: Annotated[tuple[Quantile, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        shares, costs = [share for share, _ in self.quantiles], [cost for _, cost in self.quantiles]
        if shares != sorted(shares) or costs != sorted(costs):
            raise ValueError("quantiles ascend, in their shares and in their costs")

    def at(self, share: float) -> int:
        """The cost that so large a share of all does not exceed."""
        place = bisect_right(self.quantiles, (share, TIME_NS_MAX))
        if place == 0:
            return self.quantiles[0][1]
        if place == len(self.quantiles):
            return self.quantiles[-1][1]
        (low, low_ns), (high, high_ns) = self.quantiles[place - 1], self.quantiles[place]
        return low_ns if high == low else round(low_ns + (high_ns - low_ns) * (share - low) / (high - low))


class CostModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The costs of a host.

    Attributes:
        source: where the figures are from.
        cpus: how many CPUs machines share.
        ring_ns: what a doorbell costs the machine that rings.
        burst_ring_ns: what each doorbell after the first costs it of those that it rings together.
        drain_ns: from the wake-up of a machine to the counter that it has drained.
        handle_ns: what the program takes for an interrupt, beside its doorbells.
        switch_ns: what it costs a CPU to go from one machine to another.
        wake_ns: from a doorbell to the machine that can run, on a CPU that was idle.
        wake_busy_ns: the same where the CPU was busy: the machine then waits in the queue beside.
        expire_ns: how much later than its time a machine wakes up that waits for one.
        start_ns: from the start of a machine to its connection.
        wire_ns: from what a server says to the client that can read it.
        timeslice_ns: how long a machine that does not wait keeps its CPU from others.
    """

    source: str
    cpus: Annotated[int, Meta(ge=1, le=4096)]
    ring_ns: Nanoseconds
    burst_ring_ns: Nanoseconds
    drain_ns: Nanoseconds
    handle_ns: Distribution
    switch_ns: Nanoseconds
    wake_ns: Distribution
    wake_busy_ns: Distribution
    expire_ns: Distribution
    start_ns: Distribution
    wire_ns: Distribution
    timeslice_ns: Nanoseconds


def make_draw(distribution: Distribution, seed: str) -> Callable[[], int]:
    """A function that returns the next cost in nanoseconds, drawn from a distribution.

    A table of costs is made once; drawn are a place in it and a stride, by which every place has its turn. A look-up in
    Python for each event of a machine would cost more than all else that the event does with the cost, and a list would
    have an object for each cost, which the machines' own objects displace from the CPU's cache.
    """
    at, stride = divmod(random.Random(seed).randrange(DRAWN * DRAWN), DRAWN)
    places = (at + (stride | 1) * np.arange(1, DRAWN + 1)) % DRAWN  # an odd stride: every place has its turn
    return chain.from_iterable(repeat(array("q", _costs(distribution)[places].tobytes()))).__next__


@functools.cache
def _costs(distribution: Distribution) -> NDArray[np.int64]:
    """Costs of equal probability, in an order that is always the same."""
    costs = [distribution.at((place + 0.5) / DRAWN) for place in range(DRAWN)]
    random.Random(DRAWN).shuffle(costs)
    return np.array(costs, np.int64)


@functools.cache
def load_model(source: str = DEFAULT) -> CostModel:
    """The cost model in that file, or the default one.

    Raises:
        UsageError: there is none, or it is none.
    """
    try:
        if source == DEFAULT:
            text = resources.files("sim.engines.virtual").joinpath("models/default.toml").read_text()
        else:
            text = Path(source).read_text()
        return msgspec.convert(tomllib.loads(text), CostModel)
    except OSError as error:
        hint = did_you_mean(source, [DEFAULT])
        raise UsageError(f"the cost model {source} cannot be read: {error.strerror}{hint}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} is no cost model: {error}") from error
