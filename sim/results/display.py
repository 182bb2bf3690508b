"""How a notebook shows a result. Results do not know the views: ``sim.views.notebook`` registers one for each class."""

from __future__ import annotations

import functools

__all__ = ["as_html"]


@functools.singledispatch
def as_html(value: object) -> str | None:
    """``value`` as HTML; None until a view is registered for its class, and a notebook shows its ``repr``."""
    return None
