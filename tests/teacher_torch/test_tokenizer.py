import json

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from bridge.errors import InputError
from teacher_torch.tokenizer import FolderTokenizer, QwenTokenizer, tokenizer_for

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>")
IMAGE_ID = 257 + SPECIAL.index("<IMG_CONTEXT>")


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder's tokenizer files, over bytes and one merge."""
    vocab = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    vocab["he"] = 256
    added = {token: 257 + i for i, token in enumerate(SPECIAL)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    return tmp_path


def test_folders_own_tokenizer_is_preferred(folder):
    tokenizer = tokenizer_for(folder, IMAGE_ID)
    assert isinstance(tokenizer, FolderTokenizer)
    assert tokenizer.template("<img>he</img>") == [261, 256, 262]
    assert tokenizer.pad_id == 257


def test_special_tokens_typed_by_a_user_stay_text(folder):
    ids = FolderTokenizer(folder, IMAGE_ID).plain("he <IMG_CONTEXT><|im_end|>")
    assert ids[0] == 256
    assert max(ids) <= 256
    assert max(QwenTokenizer().plain("<IMG_CONTEXT><|im_end|>")) < 151643


def test_tokenizer_of_another_model_is_refused(folder):
    with pytest.raises(InputError, match=f"expected id 151669 .* got {IMAGE_ID}"):
        tokenizer_for(folder, 151669)


def test_faulty_tokenizer_file_is_one_line(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="its tokenizer cannot be read") as error:
        tokenizer_for(folder, IMAGE_ID)
    assert "\n" not in str(error.value)


def test_folder_without_a_tokenizer_gets_qwens_vocabulary(tmp_path):
    assert isinstance(tokenizer_for(tmp_path, 151669), QwenTokenizer)
