import json
import shutil

import pytest

from engine.errors import ModelError, TokenizerMismatch
from engine.model_files.vocabulary import read_vocabulary, shared_vocabulary
from engine.models.load import load_tokenizer
from tests.tiny import END_OF_TEXT, VOCAB_SIZE, tiny_tokenizer, tiny_tokenizer_folder


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_tokenizer_folder(), tmp_path / "tokenizer")


def compare(teacher, student):
    """The shared vocabulary of two models whose embeddings have a row for each of their ids."""
    return shared_vocabulary(teacher, teacher.size, student, student.size)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_the_vocabulary_is_the_tokenizers(folder):
    vocabulary = read_vocabulary(folder)
    assert vocabulary.size == VOCAB_SIZE
    assert {token: number for number, token in vocabulary.tokens.items()} == tiny_tokenizer().get_vocab()
    assert (vocabulary.eos_id, vocabulary.bos_id, vocabulary.pad_id) == (0, 0, 1)
    assert vocabulary.chat_template is None
    assert vocabulary.chat_template_sha == ""


def test_a_vocabulary_is_known_by_its_content_not_by_its_name(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "renamed")
    edit(copy / "tokenizer_config.json", lambda config: config.update(tokenizer_class="Other", name_or_path="x/y"))
    # Merges are written as pairs or as strings, by different versions of the library.
    edit(
        copy / "tokenizer.json",
        lambda tokenizer: tokenizer["model"].update(merges=[" ".join(pair) for pair in tokenizer["model"]["merges"]]),
    )
    compare(read_vocabulary(folder), read_vocabulary(copy))


def test_one_other_token_is_found_and_named(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")

    def swap(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        by_id = {number: token for token, number in vocabulary.items()}
        vocabulary[by_id[100]], vocabulary[by_id[101]] = 101, 100

    edit(other / "tokenizer.json", swap)
    with pytest.raises(TokenizerMismatch) as caught:
        compare(read_vocabulary(folder), read_vocabulary(other))
    message = caught.value.paragraph()
    assert "2 ids differ, the first is 100" in message
    assert repr(read_vocabulary(folder).tokens[100]) in message


def test_other_merges_are_another_tokenizer(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    edit(other / "tokenizer.json", lambda tokenizer: tokenizer["model"]["merges"].reverse())
    with pytest.raises(TokenizerMismatch, match="different tokenizers") as caught:
        compare(read_vocabulary(folder), read_vocabulary(other))
    assert "merges" in caught.value.paragraph()


def with_added(folder, path, *tokens):
    """A copy with more added tokens behind the tokenizer's own ids."""
    copy = shutil.copytree(folder, path)
    entries = [{"id": VOCAB_SIZE + place, "content": token, "special": True} for place, token in enumerate(tokens)]
    edit(copy / "tokenizer.json", lambda tokenizer: tokenizer["added_tokens"].extend(entries))
    return read_vocabulary(copy)


def test_added_tokens_that_one_model_has_alone_are_not_taught(folder, tmp_path):
    plain, more = read_vocabulary(folder), with_added(folder, tmp_path / "more", "<|tool|>")
    for teacher, student, who in ((plain, more, "student"), (more, plain, "teacher")):
        shared = compare(teacher, student)
        assert shared.size == VOCAB_SIZE
        assert shared.notes == (
            f"The tokenizers share {VOCAB_SIZE} ids; 1 id of the {who} ('<|tool|>') is not taught.",
        )


def test_where_added_tokens_differ_the_shared_ids_end(folder, tmp_path):
    teacher = with_added(folder, tmp_path / "a", "<|user|>", "<|tool|>", "<|end|>", "<|x|>", "<|y|>")
    student = with_added(folder, tmp_path / "b", "<|user|>", "<|call|>", "<|end|>")
    shared = compare(teacher, student)
    assert shared.size == VOCAB_SIZE + 1
    assert shared.notes == (
        f"The tokenizers share {VOCAB_SIZE + 1} ids; 2 ids of the student ('<|call|>', '<|end|>') and 4 ids of the "
        "teacher ('<|tool|>', '<|end|>', '<|x|>' and 1 more) are not taught.",
    )


def test_tokenizers_whose_end_of_text_differs_are_refused(folder, tmp_path):
    student = with_added(folder, tmp_path / "more", "<|stop|>")
    edit(student.folder / "tokenizer_config.json", lambda config: config.update(eos_token="<|stop|>"))
    with pytest.raises(TokenizerMismatch, match=f"1 id differs, the first is {VOCAB_SIZE}: nothing for the teacher"):
        compare(read_vocabulary(folder), read_vocabulary(student.folder))


def test_an_added_token_without_a_row_is_beyond_the_vocabulary(folder, tmp_path):
    teacher = with_added(folder, tmp_path / "more", "[PAD]")
    edit(teacher.folder / "tokenizer_config.json", lambda config: config.update(pad_token="[PAD]"))
    teacher = read_vocabulary(teacher.folder)
    assert teacher.pad_id == VOCAB_SIZE
    shared = shared_vocabulary(teacher, VOCAB_SIZE)
    assert (shared.size, shared.pad_id) == (VOCAB_SIZE, 0), "rows are filled with a token that has a row"
    assert "'[PAD]' are left out" in shared.notes[0]
    assert shared_vocabulary(teacher, VOCAB_SIZE + 40).notes == ()


def test_a_word_or_an_end_of_text_without_a_row_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"embedding of 300 rows, and its tokenizer has 320 ids.*"):
        shared_vocabulary(read_vocabulary(folder), 300)
    student = with_added(folder, tmp_path / "more", "<|stop|>")
    edit(student.folder / "tokenizer_config.json", lambda config: config.update(eos_token="<|stop|>"))
    with pytest.raises(ModelError, match=r"The student .* has an embedding of 320 rows"):
        shared_vocabulary(read_vocabulary(student.folder), 321, read_vocabulary(student.folder), VOCAB_SIZE)


def test_tokens_that_stand_in_the_settings_alone_count_as_they_do_when_it_is_loaded(folder):
    edit(folder / "tokenizer_config.json", lambda config: config.update(mask_token="<|mask|>"))
    vocabulary = read_vocabulary(folder)
    tokenizer = load_tokenizer(folder)
    assert vocabulary.size == VOCAB_SIZE + 1 == len(tokenizer)
    assert vocabulary.tokens[VOCAB_SIZE] == "<|mask|>"
    assert tokenizer.mask_token_id == VOCAB_SIZE


MARK = "<|mark|>"
WAYS = {
    "tokenizer.json alone": {},
    "added_tokens.json": {"added_tokens.json": {MARK: VOCAB_SIZE}},
    "added_tokens.json with an id that is not the next": {"added_tokens.json": {MARK: VOCAB_SIZE + 7}},
    "added_tokens.json, two": {"added_tokens.json": {"<b>": VOCAB_SIZE + 1, "<a>": VOCAB_SIZE}},
    "pad in special_tokens_map.json": {"special_tokens_map.json": {"pad_token": MARK}},
    "pad as an object": {"special_tokens_map.json": {"pad_token": {"content": MARK, "lstrip": False}}},
    "more special tokens in special_tokens_map.json": {
        "special_tokens_map.json": {"additional_special_tokens": [MARK, "<other>"]}
    },
    "pad in the settings": {"tokenizer_config.json": {"pad_token": MARK}},
    "list in the settings": {"tokenizer_config.json": {"extra_special_tokens": [MARK, END_OF_TEXT]}},
    "older name of the list": {"tokenizer_config.json": {"additional_special_tokens": [MARK]}},
    "named ones in the settings": {"tokenizer_config.json": {"image_token": MARK}},
    "names and tokens": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": MARK}}},
    "added_tokens_decoder": {
        "tokenizer_config.json": {"added_tokens_decoder": {str(VOCAB_SIZE): {"content": MARK, "special": True}}}
    },
    "added_tokens_decoder, which silences the older files": {
        "tokenizer_config.json": {"added_tokens_decoder": {}},
        "added_tokens.json": {MARK: VOCAB_SIZE},
        "special_tokens_map.json": {"pad_token": "<nowhere>"},
    },
    "all of them": {
        "tokenizer_config.json": {"pad_token": "<one>", "extra_special_tokens": ["<two>"]},
        "added_tokens.json": {"<three>": VOCAB_SIZE},
        "special_tokens_map.json": {"mask_token": "<four>"},
    },
}  # fmt: skip


@pytest.mark.parametrize("files", WAYS.values(), ids=WAYS)
def test_tokens_have_the_ids_that_autotokenizer_gives_them_wherever_they_are_kept(folder, files):
    for name, content in files.items():
        path = folder / name
        there = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**there, **content}))
    vocabulary, tokenizer = read_vocabulary(folder), load_tokenizer(folder)
    assert {token: number for number, token in vocabulary.tokens.items()} == tokenizer.get_vocab()
    assert vocabulary.size == len(tokenizer)
    assert vocabulary.pad_id == tokenizer.pad_token_id


def test_a_gap_in_the_ids_is_counted(folder):
    def add_far_token(tokenizer):
        tokenizer["model"]["vocab"]["zzzz"] = 400

    edit(folder / "tokenizer.json", add_far_token)
    assert read_vocabulary(folder).size == 401


def test_vocab_json_and_merges_are_read_where_there_is_no_tokenizer_json(folder):
    whole = read_vocabulary(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()
    apart = read_vocabulary(folder)
    assert apart.tokens == whole.tokens
    assert (apart.eos_id, apart.pad_id) == (0, 1)


def test_a_sentencepiece_model_alone_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(ModelError, match=r"exists only as tokenizer\.model") as caught:
        read_vocabulary(tmp_path)
    assert "save_pretrained" in caught.value.todo


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tekken.json"])
def test_a_tokenizer_in_another_programs_format_is_named(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=f"exists only as {name}") as caught:
        read_vocabulary(tmp_path)
    assert "a copy of the model that has a tokenizer.json" in caught.value.todo


def test_no_tokenizer_at_all(tmp_path):
    with pytest.raises(ModelError, match="There is no tokenizer"):
        read_vocabulary(tmp_path)


def test_special_ids_come_from_config_json_where_the_tokenizer_names_none(folder):
    def forget(config):
        for name in ("eos_token", "bos_token", "pad_token"):
            config.pop(name, None)

    edit(folder / "tokenizer_config.json", forget)
    assert (read_vocabulary(folder).eos_id, read_vocabulary(folder).pad_id) == (None, 0)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [7, 9], "pad_token_id": 10_000}))
    vocabulary = read_vocabulary(folder)
    assert vocabulary.eos_id == 7
    assert vocabulary.pad_id == 7, "an id that cannot occur pads nothing"


@pytest.mark.parametrize("how", ["string", "list", "file"])
def test_the_chat_template_is_found_wherever_it_is_kept(folder, how):
    template = "{{ messages[0]['content'] }}"
    if how == "file":
        (folder / "chat_template.jinja").write_text(template)
    else:
        named = [{"name": "tool", "template": "x"}, {"name": "default", "template": template}]
        value = template if how == "string" else named
        edit(folder / "tokenizer_config.json", lambda config: config.update(chat_template=value))
    vocabulary = read_vocabulary(folder)
    assert vocabulary.chat_template == template
    assert len(vocabulary.chat_template_sha) == 64


def test_special_tokens_may_be_written_as_objects(folder):
    edit(
        folder / "tokenizer_config.json",
        lambda config: config.update(eos_token={"__type": "AddedToken", "content": END_OF_TEXT}),
    )
    assert read_vocabulary(folder).eos_id == 0


def test_pieces_with_scores_have_their_place_as_id(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5], ["b", -2.0]]}})
    )
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.size == 3
    assert vocabulary.tokens[2] == "b"
