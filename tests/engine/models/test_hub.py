import shutil

import pytest

from engine.errors import ModelError
from engine.models.hub import cached_models, fetch_model, is_hub_id, resolve_model
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
    assert "cannot be downloaded" in message
    assert "EleutherAI/pythia-70m" in message
    assert "Connect the machine" in message


def test_an_unfinished_download_is_no_model(cache):
    (cache / "models--someone--model" / "snapshots" / "abc").mkdir(parents=True)
    assert cached_models() == []
    with pytest.raises(ModelError, match="no model of that name"):
        resolve_model("someone/model")
