"""The rule about addresses: beyond the loopback only with TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodes.errors import UsageError
from sim.distributed.addresses import Tls, check_address, check_listening, make_tls

TLS = Tls(Path("ca"), Path("cert"), Path("key"))


@pytest.mark.parametrize(
    ("address", "tls", "host"),
    [
        ("tcp://127.0.0.1:8786", None, "127.0.0.1"),
        ("tcp://127.9.9.9:1", None, "127.9.9.9"),
        ("tcp://localhost:8786", None, "localhost"),
        ("tcp://[::1]:8786", None, "::1"),
        ("tls://192.0.2.1:8786", TLS, "192.0.2.1"),
        ("tls://host.example:8786", TLS, "host.example"),
        ("tls://127.0.0.1:8786", TLS, "127.0.0.1"),
    ],
)
def test_an_address_has_a_host(address: str, tls: Tls | None, host: str) -> None:
    assert check_address(address, tls) == host


@pytest.mark.parametrize(
    ("address", "tls", "said"),
    [
        ("tcp://192.0.2.1:8786", None, "needs TLS"),
        ("tcp://0.0.0.0:8786", None, "needs TLS"),
        ("tcp://localhost.example:8786", None, "needs TLS"),
        ("tcp://192.0.2.1:8786", TLS, "expected tls:// and not tcp://"),
        ("tcp://127.0.0.1:8786", TLS, "expected tls:// and not tcp://"),
        ("tls://192.0.2.1:8786", None, "expected --tls-ca, --tls-cert and --tls-key"),
        ("192.0.2.1:8786", TLS, "expected tcp://HOST:PORT"),
        ("ucx://192.0.2.1:8786", TLS, "expected tcp://HOST:PORT"),
        ("inproc://1/2", None, "expected tcp://HOST:PORT"),
        ("tcp://127.0.0.1", None, "expected tcp://HOST:PORT"),
        ("tcp://127.0.0.1:99999", None, "expected tcp://HOST:PORT"),
        ("tcp://127.0.0.1:1@192.0.2.1:2", None, "expected tcp://HOST:PORT"),
    ],
)
def test_an_address_without_protection_is_refused(address: str, tls: Tls | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_address(address, tls)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "example"])
def test_nothing_listens_beyond_the_loopback_without_tls(host: str) -> None:
    with pytest.raises(UsageError, match="needs TLS"):
        check_listening(host, None)
    check_listening(host, TLS)


def test_certificates_come_whole(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")]
    assert make_tls(None, None, None) is None
    for file in files:
        with pytest.raises(UsageError, match="there is no such file"):
            make_tls(*files)
        file.touch()
    assert make_tls(*files) == Tls(*files)
    for place in range(3):
        part = [None if number == place else file for number, file in enumerate(files)]
        with pytest.raises(UsageError, match="together"):
            make_tls(*part)
