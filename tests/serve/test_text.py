"""The server sends whole characters only, and never a stop text."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from dpo_train import sample
from serve.text import TextStream


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(sample.MODEL)


@pytest.mark.parametrize("text", ["Grüße, 世界! 👩‍🚀 and so on " * 4, "plain"])
def test_pieces_are_whole_characters_and_make_up_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(tokenizer, ())
    pieces = [stream.add([token], is_last=token is ids[-1]) for token in ids[:-1]]
    pieces.append(stream.add(ids[-1:], is_last=True))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_stop_text_is_cut_off_though_it_comes_in_parts(tokenizer: Any) -> None:
    stream = TextStream(tokenizer, ("END of it", "never"))
    ids = tokenizer("All is well. EN and then END of it, not told")["input_ids"]
    shown = ""
    for token in ids:
        shown += stream.add([token])
        if stream.is_stopped:
            break
    assert shown == "All is well. EN and then "
    assert stream.is_stopped
