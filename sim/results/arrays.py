"""The kinds of numpy's arrays that the columns of a run's tables become, and their sums by place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def sums_at(places: Integers, values: npt.ArrayLike, size: int) -> Integers:
    """The sum of the values of each place, 0 .. ``size`` - 1; exact, where weights of a bincount are doubles."""
    sums = np.zeros(size, np.int64)
    np.add.at(sums, places, values)
    return sums
