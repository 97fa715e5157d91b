"""Control characters of a dataset are printed as text."""

import io

import pytest
from tqdm import tqdm

from dpo_train.plain_output import PlainOutput, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text,\n\twith Grüße and 日本", "plain text,\n\twith Grüße and 日本"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08\x00", "a\\x0db\\x08\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("user\u202egpj.exe", "user\\u202egpj.exe"),
        ("one\u2028two", "one\\u2028two"),
    ],
)
def test_control_characters_are_written_out_and_letters_stay(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_stream_shows_them_and_is_otherwise_what_it_was() -> None:
    stream = io.StringIO()
    plain = PlainOutput(stream)
    print("a\x1b[2Jb", file=plain)
    plain.writelines(["c\x07\n"])
    assert stream.getvalue() == "a\\x1b[2Jb\nc\\x07\n"
    assert plain.isatty() is False
    assert plain.terminal is stream


def test_a_progress_bar_is_drawn_and_its_text_is_shown() -> None:
    stream = io.StringIO()
    bars = PlainOutput(stream, has_bars=True)
    drawn = ["\r  3%|   | a\x1b]0;b", "\n\x1b[A\r 10%", "\r      \r"]
    bars.writelines(drawn)
    assert stream.getvalue() == "\r  3%|   | a\\x1b]0;b\n\x1b[A\r 10%\r      \r"
    print("one\rtwo", file=bars)
    assert stream.getvalue().endswith("one\\x0dtwo\n")


def test_tqdm_draws_on_it() -> None:
    stream = io.StringIO()
    with tqdm(total=2, file=PlainOutput(stream, has_bars=True), desc="a\x07b") as bar:
        bar.update(2)
    assert "\r" in stream.getvalue()
    assert "\\x0d" not in stream.getvalue()
    assert "a\\x07b" in stream.getvalue()
