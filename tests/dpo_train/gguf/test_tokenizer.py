"""llama.cpp splits a text into the same tokens as the tokenizer, or the tokenizer is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from dpo_train.errors import InputError
from dpo_train.gguf.tokenizer import Kind, describe
from tests.helpers.gguf_models import TokenizerJson, small, tokenizer, written
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.varied_texts import TEXTS, with_special

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS = "<|im_start|>"
UNUSED = "[PAD1025]"
"""The text for row 1025 of the embedding, for which the tokenizer has no token."""


def split_by(*parts: dict[str, Any], ignore_merges: bool = False) -> Callable[..., None]:
    def change(content: TokenizerJson) -> None:
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(parts)}
        content["model"]["ignore_merges"] = ignore_merges
        content["normalizer"] = None
        # Tokens that span positions at which only some of the known pre-tokenizers split a text.
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
        for left, right in (("1", "2"), ("12", "3"), ("123", "4"), ("[", "i"), ("Ċ", "Ċ")):
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])

    return change


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": use_regex}  # fmt: skip


def regex(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DIGITS = {"type": "Digits", "individual_digits": True}
KNOWN = {
    "gpt-2": split_by(byte_level(True)),
    "smollm": split_by(DIGITS, byte_level(True)),
    "qwen2": split_by(regex(QWEN), byte_level(False)),
    "llama-bpe": split_by(
        regex(QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), byte_level(False), ignore_merges=True
    ),
}


def begin_with_bos(content: TokenizerJson) -> None:
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BOS, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [1022], "tokens": [BOS]}},
    }  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_llama_cpp_makes_the_same_tokens_of_texts_of_all_kinds(tmp_path: Path, name: str) -> None:
    reader = tokenizer(KNOWN[name])
    with LlamaCpp(written(small(reader), tmp_path)) as llama:
        assert llama.metadata("tokenizer.ggml.pre") == name
        for text in (with_special(text, reader) for text in TEXTS):
            assert llama.tokens(text) == reader(text)["input_ids"], text


def test_pre_tokenizers_that_are_distinguished_make_different_tokens() -> None:
    made = {
        name: [tokenizer(change)(text)["input_ids"] for text in TEXTS]
        for name, change in KNOWN.items()
    }
    assert all(made[one] != made[two] for one in made for two in made if one < two)


def test_the_samples_own_tokenizer_is_described() -> None:
    vocabulary = describe(tokenizer(), 1024, [])
    assert vocabulary.pre_tokenizer == "qwen2"
    assert "composes characters" in vocabulary.notes[0]


def test_added_tokens_are_found_in_a_text_and_shown_unless_they_are_special(
    tmp_path: Path,
) -> None:
    reader = tokenizer()
    reader.add_tokens([AddedToken("<think>", normalized=False), AddedToken("é é", special=True)])
    with LlamaCpp(written(small(reader), tmp_path)) as llama:
        for text in ("a<think>b", "<think>\n</think>", "xé éx", "<|im_end|><think>é é"):
            assert llama.tokens(text) == reader(text)["input_ids"], text
        assert llama.text(1024) == "<think>"
        assert llama.text(1025) == llama.text(1023) == ""


def test_a_normal_token_that_llama_cpp_takes_for_a_special_one_is_not_found_in_a_text(
    tmp_path: Path,
) -> None:
    def change(content: TokenizerJson) -> None:
        content["model"]["vocab"]["</s>"] = 1024

    reader = tokenizer(change)
    with LlamaCpp(written(small(reader), tmp_path)) as llama:
        assert llama.tokens("<s>old</s> new") == reader("<s>old</s> new")["input_ids"]


def test_rows_of_the_embedding_without_a_token_are_unused(tmp_path: Path) -> None:
    reader = tokenizer()
    with LlamaCpp(written(small(reader, rows=1030), tmp_path)) as llama:
        assert llama.tokens("[PAD1025] [PAD]") == reader("[PAD1025] [PAD]")["input_ids"]
    assert describe(reader, 1030, []).kinds[1024:] == [Kind.UNUSED] * 6


def test_bos_is_put_before_a_text_as_the_tokenizer_does(tmp_path: Path) -> None:
    reader = tokenizer(begin_with_bos, bos_token=BOS, chat_template="{{ bos_token }}")
    with LlamaCpp(written(small(reader), tmp_path)) as llama:
        assert llama.tokens("Hi", add_special=True) == reader("Hi")["input_ids"]
        assert llama.tokens("Hi", add_special=True)[0] == 1022


def test_no_bos_is_put_before_chats_that_the_template_begins_without_one(tmp_path: Path) -> None:
    reader = tokenizer(begin_with_bos, bos_token=BOS, chat_template="{{ messages[0].content }}")
    with LlamaCpp(written(small(reader), tmp_path)) as llama:
        assert llama.tokens("Hi", add_special=True) == reader("Hi")["input_ids"][1:]


def test_a_tokenizer_without_bos_has_none_that_is_a_word() -> None:
    assert describe(tokenizer(), 1024, []).bos == 1021


def test_every_token_that_ends_an_answer_does_so_in_llama_cpp(tmp_path: Path) -> None:
    what = small(eos_token_id=[1023, 5, 6])
    with LlamaCpp(written(what, tmp_path)) as llama:
        assert [llama.ends(token) for token in (1023, 5, 6, 7)] == [True, True, True, False]


def unknown_normaliser(content: TokenizerJson) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def half_known(content: TokenizerJson) -> None:
    content["model"]["ignore_merges"] = True


def unigram(content: TokenizerJson) -> None:
    vocabulary = [[text, -1.0] for text in content["model"]["vocab"]]
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary}


def strip(content: TokenizerJson) -> None:
    content["added_tokens"][0]["lstrip"] = True


def unknown_token(content: TokenizerJson) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["Ġx-"] = vocabulary.pop("Ā")
    content["model"]["unk_token"] = "a"


def twice(content: TokenizerJson) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "id": 1024, "content": UNUSED})


def fallback(content: TokenizerJson) -> None:
    content["model"]["byte_fallback"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (split_by(regex(r"\s+"), byte_level(False)), r'has the pre-tokenizer .*"\\\\s\+"'),
        (split_by(DIGITS, byte_level(False)), "has the pre-tokenizer"),
        (half_known, "ignore_merges true"),
        (unknown_normaliser, "normalises texts .*Lowercase"),
        (unigram, "is Unigram"),
        (fallback, "is BPE with byte fallback"),
        (strip, "'<|endoftext|>' with lstrip"),
        (unknown_token, "has an unknown token for 1 bytes"),
        (twice, r"two tokens '\[PAD1025\]'"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    change: Callable[..., None], message: str
) -> None:
    with pytest.raises(InputError, match=f"gguf: the tokenizer .*{message.replace('|', '.')}"):
        describe(tokenizer(change), 1030, [])


@pytest.mark.parametrize(
    ("rows", "settings", "ends", "message"),
    [
        (1000, {}, [], "has tokens up to 1023, and the model's embedding 1000 rows"),
        (1024, {"chat_template": "{{ bos_token }}"}, [], "has no beginning-of-text token"),
        (1024, {"eos_token": None}, [], "neither the tokenizer nor generation_config.json says"),
        (1024, {}, [4, 5, 6], r"4 tokens end an answer, \[1023, 4, 5, 6\]"),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_model_is_refused(
    rows: int, settings: dict[str, Any], ends: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        describe(tokenizer(**settings), rows, ends)
