"""How many examples of a property the suite tries, and how many `make full` does."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["examples"]


def examples(full: int) -> int:
    """``full`` in `make full`, an eighth of that in the suite."""
    return full // 8 if settings.get_current_profile_name() == "sample" else full
