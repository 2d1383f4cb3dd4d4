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
from engine.export import write_gguf
from engine.model_files.gguf.find import files_by_quant
from engine.model_files.hub import cached_models, fetch_model, is_hub_id, resolve_model
from engine.model_files.spec import read_spec
from tests.engine.model_files.gguf.test_header import split_file
from tests.engine.model_files.test_adapter import adapter_of
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
    """A hub on this machine: it serves a folder as the model me/big, and others, or fails in one way."""

    folder: Path
    others: ClassVar[dict[str, Path]] = {}
    status: int | None = None
    body = b""
    headers_of_failure: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []
    silent = False
    missing = broken = ""

    def do_GET(self):
        path = self.path.split("?")[0]
        type(self).asked.append(path.rsplit("/", 1)[-1])
        if type(self).silent:
            time.sleep(3)
            return
        if self.status is not None:
            self.answer(self.status, self.body, self.headers_of_failure)
        elif path.startswith("/api/models/") and self.model_of(path.removeprefix("/api/models/")) is not None:
            folder = self.model_of(path.removeprefix("/api/models/"))
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            siblings = [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files]
            told = {"id": "me/big", "modelId": "me/big", "sha": "a" * 40, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/"):
            self.answer(404, b"", {})
        else:
            folder = self.model_of(path.removeprefix("/"))
            if self.missing and path.endswith(self.missing):
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = (folder / path.split("/resolve/main/")[-1].split("a" * 40 + "/")[-1]).read_bytes()
            tag = hashlib.sha256(data).hexdigest()
            self.answer(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes"})

    do_HEAD = do_GET

    def model_of(self, path):
        """The folder of the model that a path begins with; None where there is none."""
        return {"me/big": self.folder, **self.others}.get("/".join(path.split("/")[:2]))

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:100] if self.broken and self.path.endswith(self.broken) else body)

    def log_message(self, *words):
        """Nothing is logged."""


@pytest.fixture
def hub(cache, monkeypatch):
    from huggingface_hub import constants

    class Served(Hub):
        asked: ClassVar[list[str]] = []
        others: ClassVar[dict[str, Path]] = {}
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
    [
        (["README.md", "mmproj-F16.gguf"], "no config.json"),
        (["config.json", "pytorch_model.bin"], "there as .bin"),
        (["adapter_config.json", "adapter_model.bin"], "an adapter without adapter_model.safetensors"),
    ],
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


@pytest.fixture
def ggufs(hub, tmp_path):
    """A repository with GGUF files of two quantisations, one of them in two parts that lie in a folder."""
    hub.folder = tmp_path / "ggufs"
    hub.folder.mkdir()
    for weight_type in ("q8_0", "f16"):
        write_gguf(tiny_model("llama"), hub.folder / f"big-{weight_type.upper()}.gguf", weight_type=weight_type)
    for name in ("mmproj-F16.gguf", "README.md", "config.json"):
        (hub.folder / name).write_text("{}")
    return hub


def test_a_gguf_file_is_chosen_by_its_quantisation_and_downloaded_alone(ggufs, cache):
    with pytest.raises(ModelError) as caught:
        fetch_model("me/big")
    assert "holds 2 GGUF files" in caught.value.what
    assert "F16, Q8_0" in caught.value.why
    assert "me/big:Q8_0" in caught.value.todo
    folder = fetch_model("me/big:q8_0")
    assert read_spec("me/big:Q8_0").num_layers == 4
    there = [file.name for file in cache.rglob("*") if file.suffix == ".gguf"]
    assert there == ["big-Q8_0.gguf"]
    ggufs.asked.clear()
    assert fetch_model("me/big:Q8_0") == folder == resolve_model("me/big"), "the only one that is here"
    assert ggufs.asked == []
    assert cached_models() == ["me/big"]
    assert read_spec(fetch_model("me/big:F16")).num_layers == 4
    assert cached_models() == ["me/big:F16", "me/big:Q8_0"]
    with pytest.raises(ModelError, match="holds 2 GGUF files"):
        resolve_model("me/big")


def test_a_quantisation_that_is_not_there_is_told_with_those_that_are(ggufs, hub):
    with pytest.raises(ModelError) as caught:
        fetch_model("me/big:Q4_K_M")
    assert "holds no GGUF file Q4_K_M. There are F16, Q8_0." in caught.value.paragraph()
    hub.folder = tiny_model("llama")
    with pytest.raises(ModelError, match="holds no GGUF files, so Q4_K_M names none"):
        fetch_model("me/big:Q4_K_M")


def test_all_parts_of_a_split_file_are_downloaded_and_gone_on_with(hub, cache, tmp_path):
    hub.folder = tmp_path / "parts"
    write_gguf(tiny_model("llama"), tmp_path / "whole.gguf")
    names = split_file(tmp_path / "whole.gguf", hub.folder / "Q8_0", "big-Q8_0")
    assert read_spec(fetch_model("me/big")).num_layers == 4
    assert sorted(file.name for file in cache.rglob("*.gguf")) == names
    next(cache.rglob(names[1])).unlink()
    with pytest.raises(ModelError, match="1 are missing"):
        resolve_model("me/big")
    assert read_spec(fetch_model("me/big")).num_layers == 4


def test_an_adapter_is_downloaded_and_its_base_model_with_it(hub, cache, tmp_path):
    hub.others["me/adapter"] = adapter_of(Path("me/big"), tmp_path / "adapter")
    folder = fetch_model("me/adapter")
    assert read_spec(folder).num_layers == 4
    assert cached_models() == ["me/adapter", "me/big"]
    hub.asked.clear()
    assert fetch_model("me/adapter") == folder
    assert hub.asked == []
    here = adapter_of(Path("me/big"), tmp_path / "here")
    shutil.rmtree(cache / "models--me--big")
    assert read_spec(fetch_model(str(here))).num_layers == 4, "an adapter's folder whose base is on the hub"


def test_what_is_here_and_cannot_be_read_is_told_and_not_asked_for_again(hub, cache, tmp_path):
    hub.others["me/adapter"] = adapter_of(Path("me/big"), tmp_path / "adapter", use_dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        fetch_model("me/adapter")
    hub.asked.clear()
    with pytest.raises(ModelError, match="DoRA"):
        fetch_model("me/adapter")
    assert hub.asked == []


def test_adapters_that_name_each_other_as_base_are_refused(cache, tmp_path):
    adapter_of(tmp_path / "second", tmp_path / "first")
    adapter_of(tmp_path / "first", tmp_path / "second")
    with pytest.raises(ModelError, match="is an adapter, as is its own base") as caught:
        resolve_model(tmp_path / "first")
    assert caught.value.todo


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a-Q4_K_M.gguf", "a.Q8_0.gguf", "a-f16.gguf"], ["Q4_K_M", "F16", "Q8_0"]),
        (["x/a-UD-Q2_K_XL.gguf", "a-IQ2_XXS.gguf", "a-bf16.gguf"], ["IQ2_XXS", "BF16", "UD-Q2_K_XL"]),
        (["tales.gguf", "gpt2.gguf"], ["gpt2", "tales"]),
        (["one-Q4_0.gguf", "two-Q4_0.gguf", "mmproj-model-f16.gguf"], ["one-Q4_0", "two-Q4_0"]),
        (["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"], ["model"]),
        (["gpt-oss-20b-mxfp4.gguf", "config.json"], ["MXFP4"]),
    ],
)
def test_gguf_files_are_told_apart_by_their_names(names, found):
    assert list(files_by_quant(names)) == found


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
    monkeypatch.setattr("engine.model_files.hub._ANSWER_SECONDS", 0.2)
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


@pytest.mark.parametrize(
    "text",
    ["https://huggingface.co/me/big", "https://hf.co/me/big/tree/main", "huggingface.co/me/big?x=1", "hf://me/big",
     "me/big/", "me/big@main", " me/big", "me/big/blob/main/config.json", "models--me--big", "~/hub/models--me--big"],
)  # fmt: skip
def test_the_address_of_a_model_leads_to_its_id(cache, text):
    with pytest.raises(ModelError) as caught:
        fetch_model(text)
    assert caught.value.paragraph().endswith("Name the model by its Hugging Face id: me/big")


@pytest.mark.parametrize("text", ["https://huggingface.co/datasets/me/big", "https://example.com/me/big", "/me/big/"])
def test_other_addresses_are_no_ids(cache, text):
    with pytest.raises(ModelError) as caught:
        fetch_model(text)
    assert "by its Hugging Face id" not in caught.value.paragraph()


def test_a_file_that_is_listed_and_not_there_is_told_from_a_model_that_is_not(hub, tmp_path):
    hub.folder = shutil.copytree(tiny_model("llama"), tmp_path / "listed")
    hub.missing = "model.safetensors"
    with pytest.raises(ModelError, match="has no file of a name that it lists itself"):
        fetch_model("me/big")


def test_a_connection_that_breaks_within_a_file_is_told_as_that(hub, monkeypatch):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "DEFAULT_REQUEST_TIMEOUT", 1)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    hub.broken = "model.safetensors"
    with pytest.raises(ModelError, match="the connection broke"):
        fetch_model("me/big")
