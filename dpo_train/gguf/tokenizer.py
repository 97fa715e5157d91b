"""Describes a tokenizer for GGUF: its tokens and merges, and the name of its pre-tokenizer.

llama.cpp has all pre-tokenizers in its source code, each under a name. Problem: a wrong name would
silently give other tokens. So we refuse every tokenizer of which we do not know each component.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypedDict

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError


class Kind(IntEnum):
    """A token's type, with GGUF's numbers."""

    NORMAL = 1
    CONTROL = 3
    """A special token, which answers do not show."""
    USER_DEFINED = 4
    """An added token, which answers show."""
    UNUSED = 5
    """A row of the embedding that no text becomes."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file stores of a tokenizer."""

    pre_tokenizer: str
    tokens: list[str]
    """The text of the token of each row of the embedding."""
    kinds: list[Kind]
    merges: list[str]
    """Pairs of texts with a space between them, the first rank first."""
    bos: int
    """The beginning-of-text token; if there is none, padding or end, because llama.cpp would use
    token 11."""
    ends: list[int]
    """The tokens that end an answer; the tokenizer's own end token comes first."""
    padding: int | None
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None
    notes: list[str]
    """Notes for the user on how llama.cpp reads texts differently, a line each."""


class _Added(TypedDict):
    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    special: bool


class _Bpe(TypedDict):
    type: str
    vocab: dict[str, int]
    merges: list[list[str]] | list[str]
    unk_token: str | None
    dropout: float | None
    continuing_subword_prefix: str | None
    end_of_word_suffix: str | None
    byte_fallback: bool
    ignore_merges: bool


class _Component(TypedDict, total=False):
    """A normaliser, pre-tokenizer or decoder, with the settings that are read here."""

    type: str
    pretokenizers: list[_Component]
    pattern: dict[str, str]
    behavior: str
    invert: bool
    individual_digits: bool
    add_prefix_space: bool
    use_regex: bool


class _File(TypedDict):
    """The content of a tokenizer.json."""

    added_tokens: list[_Added]
    normalizer: _Component | None
    pre_tokenizer: _Component | None
    decoder: _Component | None
    model: _Bpe


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    (("bytes and words",), False): "gpt-2",
    (("digits", "bytes and words"), False): "smollm",
    ((_WORDS % "", "bytes"), False): "qwen2",
    ((_WORDS % "{1,3}", "bytes"), True): "llama-bpe",
}
"""llama.cpp's names, by the steps of a pre-tokenizer and its `ignore_merges` (whether a whole word
that is a token stays one token, whatever the merges say)."""
_MOST_ENDS = 3
"""A GGUF file can name three tokens that end an answer: eos, eot and eom."""
_SPECIAL_BY_NAME = frozenset({
    "</s>", "<eos>", "[EOS]", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>",
    "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>", "<EOT>",
    "_<EOT>", "[EOT]", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>",
    "[e~[", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<PRE>", "<SUF>", "<MID>",
    "<PAD>", "[PAD]", "<REPO>", "<reponame>", "<|repo_name|>", "<|file_sep|>", "<fim-prefix>",
    "<fim_prefix>", "<|fim_prefix|>", "<|code_prefix|>", "<|prefix|>", "<fim-suffix>",
    "<fim_suffix>", "<|fim_suffix|>", "<|code_suffix|>", "<|suffix|>", "<fim-middle>",
    "<fim_middle>", "<|fim_middle|>", "<|code_middle|>", "<|middle|>", "<fim-pad>", "<fim_pad>",
    "<|fim_pad|>", "<fim-repo>", "<|fim_repo|>",
})  # fmt: skip
"""Texts that llama.cpp takes for special tokens, whatever the file says."""


def describe(tokenizer: Any, rows: int, ends: list[int]) -> Vocabulary:
    """Return what a GGUF file stores of a tokenizer of transformers.

    `rows` is the number of rows of the embedding. `ends` are the tokens that end an answer, beside
    the tokenizer's own end token. Raises InputError for a tokenizer that llama.cpp would read
    differently.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal("has no tokenizer.json")
    file: _File = json.loads(backend.to_str())
    pre_tokenizer = _pre_tokenizer(file)
    tokens, kinds = _tokens(file, rows)
    adds_bos, adds_eos = _additions(tokenizer)
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    bos = tokenizer.bos_token_id
    if bos is None and template and "bos_token" in template:
        raise _refusal("has no beginning-of-text token, which its chat template writes")
    all_ends = _ends(tokenizer, ends)
    return Vocabulary(
        pre_tokenizer=pre_tokenizer,
        tokens=tokens,
        kinds=kinds,
        merges=_merges(file["model"]),
        bos=_first(bos, tokenizer.pad_token_id, all_ends[0]),
        ends=all_ends,
        padding=tokenizer.pad_token_id,
        adds_bos=adds_bos and _begins_with_bos(template, tokenizer.bos_token),
        adds_eos=adds_eos,
        chat_template=template,
        notes=_notes(file),
    )


def _begins_with_bos(template: str | None, bos: str) -> bool:
    """Return whether the chat template writes the beginning-of-text token, or there is no template.

    Only then may llama.cpp add the token: chats are trained and served as the template writes them.
    """
    return template is None or "bos_token" in template or bos in template


def _refusal(what: str) -> InputError:
    known = ", ".join(_PRE_TOKENIZERS.values())
    return InputError(
        f"gguf: the tokenizer {what}, so llama.cpp would split a text into other tokens; only "
        f"byte-level BPE with one of the pre-tokenizers {known} can be written; leave GGUF out: "
        f"`{dpo_tune('push', 'RUN', '--to', 'FOLDER')}` writes the model as it is"
    )


def _pre_tokenizer(file: _File) -> str:
    """Return llama.cpp's name of the pre-tokenizer. Raises InputError for an unknown one."""
    bpe = file["model"]
    if bpe["type"] != "BPE" or bpe["byte_fallback"]:
        raise _refusal(f"is {bpe['type']}{' with byte fallback' * (bpe['type'] == 'BPE')}")
    for setting in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if bpe.get(setting):
            raise _refusal(f"has a {setting}")
    normalizer = file["normalizer"]
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise _refusal(f"normalises texts ({_shown(normalizer)})")
    if (file["decoder"] or {}).get("type") != "ByteLevel":
        raise _refusal(f"decodes by {_shown(file['decoder'])}")
    steps = tuple(_steps(file["pre_tokenizer"]))
    name = _PRE_TOKENIZERS.get((steps, bpe["ignore_merges"]))
    if name is None:
        ignores = str(bpe["ignore_merges"]).lower()
        shown = _shown(file["pre_tokenizer"])
        raise _refusal(f"has the pre-tokenizer {shown} and ignore_merges {ignores}")
    return name


def _shown(component: object) -> str:
    text = json.dumps(component)
    return text if len(text) <= 300 else f"{text[:300]} …"


def _steps(component: _Component | None) -> list[str]:
    """Return the steps of a pre-tokenizer as `_PRE_TOKENIZERS` names them; unknown ones as JSON."""
    if component is not None and component["type"] == "Sequence":
        return [step for each in component["pretokenizers"] for step in _steps(each)]
    match component:
        case {"type": "Digits", "individual_digits": True}:
            return ["digits"]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return ["bytes and words"]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return ["bytes"]
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
              "invert": False}:  # fmt: skip
            return [regex]
    return [json.dumps(component)]


def _tokens(file: _File, rows: int) -> tuple[list[str], list[Kind]]:
    """Return text and kind of the token of each row of the embedding.

    Normal tokens are written with the letters that encode their bytes, added tokens as plain text.
    """
    normal = {number: text for text, number in file["model"]["vocab"].items()}
    added = {token["id"]: token for token in file["added_tokens"]}
    beyond = max((*normal, *added)) + 1
    if beyond > rows:
        raise _refusal(f"has tokens up to {beyond - 1}, and the model's embedding {rows} rows")
    for token in added.values():
        for side in ("lstrip", "rstrip", "single_word"):
            if token[side]:  # type: ignore[literal-required]
                raise _refusal(f"has the added token {token['content']!r} with {side}")
    tokens, kinds = [], []
    for number in range(rows):
        if number in added:
            tokens.append(added[number]["content"])
            kinds.append(Kind.CONTROL if added[number]["special"] else Kind.USER_DEFINED)
        elif number in normal and normal[number] not in _SPECIAL_BY_NAME:
            tokens.append(normal[number])
            kinds.append(Kind.NORMAL)
        else:
            # llama.cpp would treat a normal token with a special token's name as special in every
            # text. The tokenizer never makes such a token, because its pre-tokenizer splits the
            # name. So we write it as unused.
            tokens.append(f"[PAD{number}]")
            kinds.append(Kind.UNUSED)
    if len(set(tokens)) < rows:
        twice = next(text for text in tokens if tokens.count(text) > 1)
        raise _refusal(f"has two tokens {twice!r}")
    return tokens, kinds


def _merges(bpe: _Bpe) -> list[str]:
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"]]
    for merge in merges:
        if len(merge) != 2 or any(" " in part for part in merge):
            raise _refusal(f"has the merge {merge!r}")
    missing = [letter for letter in _byte_letters() if letter not in bpe["vocab"]]
    if missing and bpe["unk_token"] is not None:
        raise _refusal(f"has an unknown token for {len(missing)} bytes")
    return [" ".join(merge) for merge in merges]


def _byte_letters() -> list[str]:
    """Return the letters with which byte-level BPE encodes the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel  # comes with transformers, slow to import

    return sorted(ByteLevel.alphabet())


def _additions(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether the tokenizer adds its bos before a text, and its eos after it.

    Raises InputError if it adds anything else.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for adds_bos in (False, True):
        for adds_eos in (False, True):
            before = [tokenizer.bos_token_id] * adds_bos
            if whole == [*before, *plain, *[tokenizer.eos_token_id] * adds_eos]:
                return adds_bos, adds_eos
    raise _refusal(f"makes {whole} of the text 'a', which is {plain} without special tokens")


def _ends(tokenizer: Any, ends: list[int]) -> list[int]:
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    found = list(dict.fromkeys([*own, *ends]))
    if not found:
        raise InputError(
            "gguf: neither the tokenizer nor generation_config.json says which token ends an "
            "answer; set `eos_token` in tokenizer_config.json"
        )
    if len(found) > _MOST_ENDS:
        raise InputError(
            f"gguf: {len(found)} tokens end an answer, {found}, and a GGUF file can name "
            f"{_MOST_ENDS}; shorten eos_token_id in generation_config.json"
        )
    return found


def _first(*numbers: int | None) -> int:
    return next(number for number in numbers if number is not None)


def _notes(file: _File) -> list[str]:
    notes = []
    if file["normalizer"] is not None:
        notes.append(
            "the tokenizer composes characters first (NFC), and llama.cpp does not, so there a "
            "text with decomposed accents, like e and U+0301, becomes other tokens"
        )
    return notes
