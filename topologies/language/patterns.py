"""Regular expressions that a topology's file has."""

from __future__ import annotations

import re
import warnings

__all__ = ["compile_pattern"]


def compile_pattern(text: str) -> re.Pattern[str]:
    """Compile it; Python's warning that ``[[`` may mean something else one day is not for its author.

    Raises:
        re.error: it is no regular expression.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return re.compile(text)
