import hashlib
import http.server
import json
import shutil
import ssl
import threading
import time
import types
from pathlib import Path
from typing import ClassVar

import pytest

from engine.errors import ModelError
from engine.models.hub import cached_models, fetch_model, is_hub_id, resolve_model
from engine.models.spec import read_spec
from tests.tiny import tiny_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(cache, model_id, revision="abc", *, main=True):
    repository = cache / ("models--" + model_id.replace("/", "--"))
    snapshot = shutil.copytree(tiny_model("llama"), repository / "snapshots" / revision)
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision + "\n")
    return snapshot


def test_a_folder_is_itself(cache):
    assert resolve_model(tiny_model("llama")) == tiny_model("llama")
    assert resolve_model(str(tiny_model("llama"))) == tiny_model("llama")


def test_an_id_is_found_in_the_local_cache(cache):
    snapshot = put(cache, "someone/small-model")
    assert resolve_model("someone/small-model") == snapshot
    assert fetch_model("someone/small-model") == snapshot
    assert put(cache, "gpt2") == resolve_model("gpt2")
    assert cached_models() == ["gpt2", "someone/small-model"]


def test_main_is_taken_before_other_revisions_and_any_before_none(cache):
    main = put(cache, "someone/model", "aaa")
    put(cache, "someone/model", "bbb", main=False)
    assert resolve_model("someone/model") == main
    assert put(cache, "someone/other", "ccc", main=False) == resolve_model("someone/other")


def test_a_model_that_is_not_cached_names_those_that_are(cache):
    put(cache, "EleutherAI/pythia-70m")
    with pytest.raises(ModelError) as caught:
        resolve_model("EleutherAI/pythia-70n")
    message = caught.value.paragraph()
    assert "EleutherAI/pythia-70m" in message
    assert str(cache) in message


def test_a_path_is_not_taken_for_an_id(cache):
    for path in ("./model", "/no/where", "../up/there", "a/b/c"):
        assert not is_hub_id(path)
        with pytest.raises(ModelError, match="There is no folder"):
            resolve_model(path)
    assert is_hub_id("EleutherAI/pythia-70m")
    assert is_hub_id("gpt2")


def test_without_network_the_message_says_so_and_names_what_is_there(cache, monkeypatch):
    from huggingface_hub import constants

    put(cache, "EleutherAI/pythia-70m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        fetch_model("EleutherAI/pythia-160m")
    message = caught.value.paragraph()
    assert "HF_HUB_OFFLINE forbids" in message
    assert "EleutherAI/pythia-70m" in message
    assert "Unset HF_HUB_OFFLINE" in message


def test_an_unfinished_download_is_no_model(cache):
    (cache / "models--someone--model" / "snapshots" / "abc").mkdir(parents=True)
    assert cached_models() == []
    with pytest.raises(ModelError, match="no model of that name"):
        resolve_model("someone/model")


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub on this machine: it serves a folder as the model me/big, or fails in one way."""

    folder: Path
    status: int | None = None
    body = b""
    headers_of_failure: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []
    silent = False

    def do_GET(self):
        path = self.path.split("?")[0]
        type(self).asked.append(path.rsplit("/", 1)[-1])
        if type(self).silent:
            time.sleep(3)
            return
        if self.status is not None:
            self.answer(self.status, self.body, self.headers_of_failure)
        elif path.startswith("/api/models/me/big"):
            files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
            siblings = [
                {"rfilename": str(file.relative_to(self.folder)), "size": file.stat().st_size} for file in files
            ]
            told = {"id": "me/big", "modelId": "me/big", "sha": "a" * 40, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/"):
            self.answer(404, b"", {})
        else:
            data = (self.folder / path.split("/resolve/main/")[-1].split("a" * 40 + "/")[-1]).read_bytes()
            tag = hashlib.sha256(data).hexdigest()
            self.answer(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes"})

    do_HEAD = do_GET

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words):
        """Nothing is logged."""


@pytest.fixture
def hub(cache, monkeypatch):
    from huggingface_hub import constants

    class Served(Hub):
        asked: ClassVar[list[str]] = []
        folder = tiny_model("llama")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield Served
    server.shutdown()
    server.server_close()


def test_a_model_is_downloaded_once_and_found_again(hub, cache):
    folder = fetch_model("me/big")
    assert read_spec(folder).num_parameters == read_spec(tiny_model("llama")).num_parameters
    hub.asked.clear()
    assert fetch_model("me/big") == resolve_model("me/big") == folder
    assert hub.asked == []


def test_only_what_a_run_reads_is_downloaded(hub, tmp_path):
    hub.folder = shutil.copytree(tiny_model("llama", shard_bytes=40_000), tmp_path / "all")
    for name in (
        *("consolidated.safetensors", "pytorch_model.bin", "params.json", "README.md", "training_args.json"),
        *("original/model.safetensors", "adapter/adapter_model.safetensors", "onnx/model.onnx", "model.safetensors"),
    ):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_bytes(b"x" * 100)
    (hub.folder / "LICENSE").write_text("free")
    folder = fetch_model("me/big")
    found = {file.name for file in folder.rglob("*") if file.is_file()}
    wanted = {file.name for file in tiny_model("llama", shard_bytes=40_000).iterdir()} | {"LICENSE"}
    assert found == wanted
    assert read_spec(folder).num_layers == 4


def test_a_download_that_is_cut_off_is_no_model_and_is_gone_on_with(hub, cache, tmp_path):
    hub.folder = shutil.copytree(tiny_model("llama"), tmp_path / "some")
    kept = (hub.folder / "model.safetensors").rename(tmp_path / "kept")
    (hub.folder / "model.safetensors").mkdir()  # is listed nowhere and cannot be sent
    with pytest.raises(ModelError, match="has no safetensors"):
        fetch_model("me/big")
    assert cached_models() == []
    (hub.folder / "model.safetensors").rmdir()
    kept.rename(hub.folder / "model.safetensors")
    assert read_spec(fetch_model("me/big")).num_layers == 4


@pytest.mark.parametrize(
    ("files", "told"),
    [(["model.Q4.gguf"], "no config.json. It holds GGUF"), (["config.json", "pytorch_model.bin"], "there as .bin")],
)
def test_a_repository_without_safetensors_is_refused_before_anything_is_downloaded(hub, tmp_path, files, told):
    hub.folder = tmp_path / "other"
    hub.folder.mkdir()
    for name in files:
        (hub.folder / name).write_text("{}")
    with pytest.raises(ModelError) as caught:
        fetch_model("me/big")
    assert told in caught.value.paragraph()
    assert hub.asked == ["big"]


def test_a_model_that_is_larger_than_the_disk_is_refused_with_both_sizes(hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match=r"takes [\d,]+ bytes, and 1,000 are free"):
        fetch_model("me/big")


CAUSES = {
    "no right": (401, {}, "has no model me/big, or it is private (401)"),
    "gated": (403, {"X-Error-Code": "GatedRepo"}, "accepted its terms"),
    "forbidden": (403, {}, "have no access (403)"),
    "not there": (404, {}, "has no model me/big, or it is private (404)"),
    "not there, with its code": (404, {"X-Error-Code": "RepoNotFound"}, "has no model me/big"),
    "proxy": (407, {}, "the proxy asks for a name"),
    "too many": (429, {}, "too many requests came from here (429)"),
    "fault": (500, {}, "a server error (500)"),
    "busy": (503, {}, "a server error (503)"),
    "nonsense": (200, {}, "the answer is invalid"),
}


@pytest.mark.parametrize(("status", "headers", "told"), CAUSES.values(), ids=CAUSES)
def test_each_cause_has_its_own_sentence(hub, status, headers, told):
    hub.status, hub.headers_of_failure, hub.body = status, headers, b"<html>log in</html>"
    with pytest.raises(ModelError) as caught:
        fetch_model("me/big")
    assert told in caught.value.paragraph()
    assert caught.value.exit_code == 2
    assert caught.value.todo


def test_a_refused_token_is_named_and_not_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    hub.status = 401
    with pytest.raises(ModelError, match="refuses the token in HF_TOKEN") as caught:
        fetch_model("me/big")
    assert "secret" not in caught.value.paragraph()


def test_silence_a_closed_door_and_a_missing_package_are_told_apart(hub, monkeypatch):
    monkeypatch.setattr("engine.models.hub._ANSWER_SECONDS", 0.2)
    hub.silent = True
    with pytest.raises(ModelError, match="did not answer in time"):
        fetch_model("me/big")
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot be reached"):
        fetch_model("me/big")

    def without_package(*args, **kwargs):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed. Make sure to install it.")

    monkeypatch.setattr(HfApi, "model_info", without_package)
    with pytest.raises(ModelError, match="'socksio' package is not installed") as caught:
        fetch_model("me/big")
    assert "pip install socksio" in caught.value.todo

    def untrusted(*args, **kwargs):
        raise ConnectionError("x") from ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED")

    monkeypatch.setattr(HfApi, "model_info", untrusted)
    with pytest.raises(ModelError, match="not trusted here"):
        fetch_model("me/big")
