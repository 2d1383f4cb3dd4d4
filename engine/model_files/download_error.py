"""Why a download failed, in a sentence for each cause, with what helps.

The hub's client wraps errors of the network, of a proxy, of the settings and of the disk in classes of its own, so the
whole chain of errors is looked at. Knows nothing of what was to be downloaded.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from engine.errors import ModelError, shown_value

_LATER = "Try again later, or name a model that is already here."
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_NO_FILE = ("EntryNotFoundError", "RemoteEntryNotFoundError")  # not the local one, which stands for any failure
_ELSEWHERE = "HF_HUB_CACHE to a folder on another disk"

# Errors of the folder for downloads: what is wrong there, and what helps.
_OF_THE_DISK = {
    errno.ENOSPC: ("there is no room in {cache}.", f"Free some space, or set {_ELSEWHERE}."),
    errno.EDQUOT: ("the quota for {cache} is used up.", f"Free some space, or set {_ELSEWHERE}."),
    errno.EFBIG: ("a file may not become that large in {cache}.", f"Raise the limit (ulimit -f), or set {_ELSEWHERE}."),
    errno.EROFS: ("{cache} is on a read-only file system.", f"Set {_ELSEWHERE}."),
    errno.EIO: ("the disk of {cache} fails (input/output error).", f"Check the disk, or set {_ELSEWHERE}."),
    errno.ENOTDIR: ("{cache} is not a folder, or lies below a file.", "Set HF_HUB_CACHE to a folder."),
    errno.ENAMETOOLONG: ("a name in {cache} is too long for its file system.", f"Set {_ELSEWHERE}."),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("{cache} cannot be written.", "Set HF_HUB_CACHE to one that can.")),
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
        ("the file system of {cache} has no locks.", f"Set {_ELSEWHERE}."),
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), ("too many files are open.", "Raise the limit (ulimit -n 4096), and try again.")
    ),
}


def download_error(model_id: str, error: BaseException, cache: Path, cached: str) -> ModelError:
    """The error for a download that failed.

    Args:
        model_id: of the model.
        error: that the hub's client raised.
        cache: the folder for downloads.
        cached: which models are there, a sentence.
    """
    chain = list(_chain(error))
    status = next((code for link in chain if (code := _status(link)) is not None), None)
    if any(type(link).__name__ in _NO_FILE for link in chain) and status in (None, 404):
        what = f"{model_id} on Hugging Face has no file of a name that it lists itself (404)."
        return ModelError(what, cached, "Its owner has not uploaded all of it, or is at it: try again later.")
    if status is not None or _names(chain, "GatedRepo"):
        what, todo = _refused(model_id, status or 403)
    else:
        reason, todo = (
            _local(chain, cache) or _of_a_setting(chain) or _of_a_proxy(chain) or _of_the_network(chain)
            or _of_the_answer(error)
        )  # fmt: skip
        what = f"{model_id} cannot be downloaded: {reason}"
    return ModelError(what, cached, todo)


def _refused(model_id: str, status: int) -> tuple[str, str]:
    """Return the meaning of an HTTP status of failure, and a remedy."""
    failed = f"{model_id} cannot be downloaded: "
    if status == 403:
        return (
            f"{model_id} is gated: you have not accepted its terms or have no access ({status}).",
            f"Accept them on https://huggingface.co/{model_id}, then run hf auth login.",
        )
    if status == 401 and any(os.environ.get(name) for name in _TOKENS):
        return (
            f"{failed}Hugging Face refuses the token in HF_TOKEN (401).",
            "Make a new one on https://huggingface.co/settings/tokens, or unset HF_TOKEN for a public model.",
        )
    if status in (401, 404):
        return (
            f"Hugging Face has no model {model_id}, or it is private ({status}).",
            "Check the spelling; for a private model run hf auth login first.",
        )
    if status == 407:
        return f"{failed}the proxy asks for a name and a password (407).", _WITH_PASSWORD
    if status == 429:
        return (
            f"{failed}too many requests came from here (429).",
            "Wait some minutes; with hf auth login more are allowed.",
        )
    if status >= 500:
        return f"{failed}Hugging Face answers with a server error ({status}).", _LATER
    return (
        f"{failed}Hugging Face, or a proxy before it, refuses the request ({status}).",
        "Check HF_ENDPOINT and a proxy's settings, or name a model that is already here.",
    )


def _local(chain: list[BaseException], cache: Path) -> tuple[str, str] | None:
    """An error of the folder for downloads, or of a file with certificates."""
    for link in chain:
        if not isinstance(link, OSError) or isinstance(link, (ConnectionError, TimeoutError)):
            continue
        if link.errno in _OF_THE_DISK:
            reason, todo = _OF_THE_DISK[link.errno]
            return reason.format(cache=cache), todo
        missing = [name for name in _CERTIFICATES if (path := os.environ.get(name)) and not Path(path).exists()]
        if link.errno == errno.ENOENT and missing:
            return f"{missing[0]} names a file that is not there.", f"Correct {missing[0]}, or unset it."
    return None


_WITH_PASSWORD = "Put them into HTTPS_PROXY, as in http://name:password@proxy:3128."


def _of_a_setting(chain: list[BaseException]) -> tuple[str, str] | None:
    """A variable of the environment that the client cannot use, or a package that it lacks for one."""
    said = " ".join(map(str, chain))
    proxies = [name for name in _PROXIES if os.environ.get(name)]
    if missing := next((link for link in chain if isinstance(link, ImportError)), None):
        return (
            f"a package is missing ({_first_line(missing)}).",
            "Install it (for a SOCKS proxy: pip install socksio), or unset ALL_PROXY and HTTPS_PROXY.",
        )
    if proxies and ("proxy URL" in said or _names(chain, "InvalidURL")):
        return (
            f"{' or '.join(proxies)} is no address of a proxy ({_first_line(chain[-1])}).",
            "It begins with http://, https:// or socks5://, as in http://proxy:3128.",
        )
    if _names(chain, "UnsupportedProtocol", "InvalidURL"):
        return (
            f"HF_ENDPOINT is no address ({_first_line(chain[-1])}).",
            "It begins with https://, as in https://huggingface.co; unset it for Hugging Face itself.",
        )
    if _names(chain, "UnicodeEncodeError", "LocalProtocolError"):
        return "the token holds a character that no token has.", "Set HF_TOKEN again, or run hf auth login."
    if isinstance(chain[-1], ValueError) and "invalid literal for int()" in said:
        numbers = [name for name in os.environ if name.startswith("HF_") and not os.environ[name].isdecimal()]
        wrong = next((name for name in numbers if repr(os.environ[name]) in said), "a variable HF_…")
        return f"{wrong} has to be a whole number.", f"Correct {wrong}, or unset it."
    return None


def _of_a_proxy(chain: list[BaseException]) -> tuple[str, str] | None:
    """A proxy's refusal of the request for a tunnel."""
    refusal = next((link for link in chain if type(link).__name__ == "ProxyError"), None)
    if refusal is None:
        return None
    said = _first_line(refusal)
    if re.match(r"407\b", said):
        return "the proxy asks for a name and a password (407).", _WITH_PASSWORD
    return (
        f"the proxy does not let the request through ({said}).",
        "Ask the proxy's owner for huggingface.co, or unset HTTPS_PROXY where there is another way out.",
    )


def _of_the_network(chain: list[BaseException]) -> tuple[str, str] | None:
    """A connection that cannot be made, is not trusted, or breaks."""
    said = " ".join(map(str, chain))
    if _names(chain, "SSL") or "CERTIFICATE" in said or "[SSL" in said:
        return (
            "the certificate of Hugging Face, or of a proxy before it, is not trusted here (TLS).",
            "Set SSL_CERT_FILE to your organisation's certificates, and check this machine's date.",
        )
    if _names(chain, "Timeout"):
        return (
            "Hugging Face did not answer in time.",
            "Check the connection and a proxy's settings, or name a model that is already here.",
        )
    if _names(chain, "Connect", "gaierror", "OfflineMode"):
        behind = [name for name in _PROXIES if os.environ.get(name)]
        through = f" through the proxy in {' or '.join(behind)}" if behind else ""
        return (
            f"Hugging Face cannot be reached{through}.",
            f"Connect the machine to the internet{', or correct the proxy' if behind else ''}, or name a model that is "
            "already here.",
        )
    if _names(chain, "RemoteProtocolError", "ReadError", "IncompleteRead", "ChunkedEncoding") and (
        "closed connection" in said or "disconnected" in said or "IncompleteRead" in said
    ):
        return f"the connection broke ({_first_line(chain[0])}).", _LATER
    if "Consistency check failed" in said:
        return "a file came shorter or longer than it is.", "Try again: the file is downloaded again."
    return None


def _of_the_answer(error: BaseException) -> tuple[str, str]:
    return (
        f"the answer is invalid ({type(error).__name__}: {_first_line(error)}).",
        "Check HF_ENDPOINT and a proxy's settings; a login page of the network may be in between.",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or link.__context__


def _names(chain: list[BaseException], *parts: str) -> bool:
    """Whether the name of an error's class has one of these parts."""
    return any(part in type(link).__name__ for link in chain for part in parts)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error tells of, where it is one of failure."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) and code >= 400 else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shown_value(lines[0].rstrip(".")) if lines else type(error).__name__
