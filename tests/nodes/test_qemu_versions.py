"""nodes.qemu_versions: versions in what a QEMU prints, and texts that changed."""

from __future__ import annotations

import pytest

from nodes.errors import UsageError
from nodes.qemu_versions import COMPARED_VERSIONS, NEWEST, OLDEST, QemuVersion, by_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", (7, 2)),
        ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)", (11, 1)),
        ("10.0", (10, 0)),
        ("2.6", OLDEST),
    ],
)
def test_a_version_is_read(text: str, version: tuple[int, int]) -> None:
    assert QemuVersion.parse(text) == version


@pytest.mark.parametrize("text", ["", "11", "x86_64", "version", "1000.2"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected a version of QEMU such as 11\.1"):
        QemuVersion.parse(text)


VERSIONS = ((1, 0), (7, 2), (9, 9), (10, 0), (11, 0), (12, 0))


def test_a_text_is_that_of_the_last_change_before_a_version() -> None:
    changes = (QemuVersion(10, 0), "second"), (QemuVersion(11, 1), "third")
    told = [
        by_version(QemuVersion(*at), "first", *changes) for at in ((1, 0), (7, 2), (9, 9), (10, 0), (11, 0), (12, 0))
    ]
    assert told == ["first", "first", "first", "second", "second", "third"]
    assert sorted(COMPARED_VERSIONS)[-1] == NEWEST
