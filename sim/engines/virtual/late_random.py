"""The random numbers of a machine, made when its program first draws one."""

from __future__ import annotations

import random
from typing import Any


class LateRandom:
    """Has the attributes of ``random.Random(seed)``, which is made for the first of them: one takes 2.8 KiB.

    A machine that draws none has none, and 65,536 that are about to start do not have theirs yet.
    """

    __slots__ = ("_made", "_seed")

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._made: random.Random | None = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = random.Random(self._seed)
        return getattr(self._made, name)
