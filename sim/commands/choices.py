"""A parameter that is one of some names; the error for a misspelt one has the nearest."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import click

from nodes.spelling import did_you_mean


class NameChoice(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2
    """``names`` are listed and completed. A name in ``known`` is accepted as well."""

    def __init__(self, names: Iterable[str], known: Collection[str] = ()) -> None:
        super().__init__(list(names))
        self._known = known or self.choices

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Raises ``click.BadParameter``."""
        if value in self._known:
            return value
        hint = did_you_mean(value, self.choices)
        raise click.BadParameter(f"expected one of {', '.join(self.choices)}, got {value!r}{hint}", ctx, param)
