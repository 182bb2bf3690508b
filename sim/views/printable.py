"""Text from files and other processes, without characters that could control a terminal or break a document."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """``text`` with a replacement character for each control character that is not in ``keep``."""
    return "".join(each if each.isprintable() or each in keep else "\N{REPLACEMENT CHARACTER}" for each in text)
