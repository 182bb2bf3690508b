"""How a notebook shows a result: as HTML, or as a frame of pandas.

Results do not know the views: ``sim.views.notebook`` registers one for each class.
"""

from __future__ import annotations

import functools
from typing import Any

from nodes.errors import UsageError


@functools.singledispatch
def as_html(value: object) -> str | None:
    """``value`` as HTML; None until a view is registered for its class, and a notebook shows its ``repr``."""
    return None


def require_pandas() -> Any:
    """The module ``pandas``. Raises ``UsageError`` without it."""
    try:
        import pandas
    except ImportError as error:
        raise UsageError("frames need pandas: pip install 'ivshmem-sim[notebook]'") from error
    return pandas
