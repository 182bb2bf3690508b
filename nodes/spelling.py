"""The nearest known name for a misspelt one. Pure."""

from __future__ import annotations

from collections.abc import Iterable

_COMPARED_CHARACTERS = 128


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of an error text: ``; did you mean "x"?``, or "" where no name in ``known`` is near."""
    hint = nearest(word, known)
    return f"; {hint}" if hint else ""


def nearest(word: object, known: Iterable[str]) -> str:
    """A hint with the spelling in ``known`` that ``word`` probably stands for, or ""."""
    meant = meant_by(word, known)
    return f'did you mean "{meant}"?' if meant else ""


def meant_by(word: object, known: Iterable[str]) -> str:
    """The name in ``known`` that is nearest to ``word``, or ""."""
    if not isinstance(word, str):
        return ""
    import difflib

    # The comparison is quadratic in the length.
    spelled = {item.lower(): item for item in known}
    said = word[:_COMPARED_CHARACTERS].strip().lower()
    close = difflib.get_close_matches(said, spelled, n=1) or [name for name in spelled if said in name.split("_")][:1]
    return spelled[close[0]] if close else ""
