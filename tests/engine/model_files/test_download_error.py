"""Each cause of a failed download has its own sentence, however the hub's client wraps it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.model_files.download_error import download_error

CACHE = Path("/somewhere/hub")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def of_the_client(name: str, said: str) -> Exception:
    """An error of the library that the hub's client has for HTTP, which has changed with its versions."""
    made: Exception = type(name, (Exception,), {})(said)
    return made


def told(error: BaseException) -> str:
    """The message for an error that a wrapper hides, as the hub's client does."""
    try:
        try:
            raise error
        except type(error) as cause:
            raise FileNotFoundError("cannot find the requested files in the local cache") from cause
    except FileNotFoundError as wrapper:
        found = download_error("me/big", wrapper, CACHE, "The cache holds no models.")
    assert isinstance(found, ModelError)
    assert found.todo
    assert "the answer is invalid" not in found.what
    return found.what


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ENOSPC, "no room"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EIO, "disk"),
     (errno.EFBIG, "that large"), (errno.ENOTDIR, "not a folder"), (errno.EACCES, "cannot be written"),
     (errno.EPERM, "cannot be written"), (errno.ENOLCK, "no locks"), (errno.EOPNOTSUPP, "no locks"),
     (errno.ENOSYS, "no locks"), (errno.EMFILE, "too many files")],
)  # fmt: skip
def test_an_error_of_the_disk_is_not_taken_for_one_of_the_network(number: int, word: str) -> None:
    said = told(OSError(number, os.strerror(number), str(CACHE / "x")))
    assert word in said
    assert str(CACHE) in said or number == errno.EMFILE


def test_what_a_proxy_says_is_told_as_said_by_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the proxy asks for a name and a password" in told(
        of_the_client("ProxyError", "407 Proxy Authentication Required")
    )
    assert "the proxy does not let the request through (403 Forbidden)" in told(
        of_the_client("ProxyError", "403 Forbidden")
    )
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert "cannot be reached through the proxy in HTTPS_PROXY" in told(of_the_client("ConnectError", "refused"))
    assert "HTTPS_PROXY is no address of a proxy" in told(ValueError("Unknown scheme for proxy URL URL('socks://x')"))


def test_settings_of_the_environment_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_ENDPOINT is no address" in told(
        of_the_client("UnsupportedProtocol", "Request URL is missing a protocol")
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    assert "SSL_CERT_FILE names a file that is not there" in told(FileNotFoundError(errno.ENOENT, "No such file"))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1.5")
    wrong = ValueError("invalid literal for int() with base 10: '1.5'")
    assert "HF_HUB_ETAG_TIMEOUT has to be a whole number" in told(wrong)
    with pytest.raises(UnicodeEncodeError) as caught:
        "schlüssel".encode("ascii")
    said = told(caught.value)
    assert "the token holds a character" in said
    assert "schl" not in said


@pytest.mark.parametrize("text", ["Server disconnected without sending a response.", "peer closed connection without"])
def test_a_broken_connection_is_no_invalid_answer(text: str) -> None:
    assert "the connection broke" in told(of_the_client("RemoteProtocolError", text))
    assert "shorter or longer" in told(OSError("Consistency check failed: file should be of size 3 but has size 1"))
