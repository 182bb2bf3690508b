"""Versions of QEMU, and texts that QEMU words differently from a version on."""

from __future__ import annotations

import re
from typing import NamedTuple

from nodes.errors import UsageError


class QemuVersion(NamedTuple):
    """Major and minor number; what QEMU says does not change within a minor version."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> QemuVersion:
        """The first version number in ``text``, such as "7.2.22".

        Raises:
            UsageError: there is none.
        """
        found = re.search(r"\b([0-9]{1,3})\.([0-9]{1,3})(?:\.[0-9]+)*\b", text)
        if found is None:
            raise UsageError(f"expected a version of QEMU such as {NEWEST}, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = QemuVersion(2, 6)
NEWEST = QemuVersion(11, 1)
COMPARED_VERSIONS = (QemuVersion(7, 2), QemuVersion(10, 0), NEWEST)
"""The versions whose texts and behaviour were observed; another one is taken to be as the last one before it."""


def by_version(version: QemuVersion, first: str, *changes: tuple[QemuVersion, str]) -> str:
    """The text of ``version``: ``first`` is that of the oldest, ``changes`` those from a version on, in their order."""
    return [text for since, text in ((OLDEST, first), *changes) if since is OLDEST or since <= version][-1]
