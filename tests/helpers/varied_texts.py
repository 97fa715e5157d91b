"""Fifty texts that slightly different tokenizers split differently."""

from typing import Any

TEXTS = (
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "",
    " ",
    "  two  spaces  ",
    "\ttabs\tand\nnew lines\r\n\r\n\n\n",
    "   \n   \n  x",
    "trailing   ",
    "a\u00a0b\u2003c\u3000d",
    "\n\n\n\n\n",
    " " * 40 + "indented",
    "I'm, you're, he'd, we'll, they've, it's, 't 'S 'LL 'Re",
    "DON'T SHOUT, SHE'LL HEAR; o'clock rock'n'roll",
    "’typographic’ “quotes” – dashes — …",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9",
    "tel. +49 30 901820; 2026-11-27T09:30:00Z",
    "١٢٣ ４５６ Ⅷ ½ x² H₂O",
    "café naïve Ångström façade Zürich Łódź",
    "ÀÉÎÕÜ ßẞ œ æ ø ð þ",
    "Привет, мир! Съешь ещё этих мягких булок.",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界！我们在北京。",
    "こんにちは世界。カタカナとひらがな",
    "안녕하세요 세계",
    "Tiếng Việt có nhiều dấu",
    "🙂 😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "text🙂text 🚀🚀🚀 ✅",
    "\ufeffbom \u200bzero\u200dwidth",
    "def f(x):\n    return [i ** 2 for i in range(x) if i % 2 == 0]\n",
    "for(int i=0;i<10;++i){a[i]=b->c;}",
    "SELECT * FROM t WHERE a >= 3 AND b <> 'x';",
    '<html><body class="x">&nbsp;</body></html>',
    "<s>struck</s> [PAD] <eos> <unk>",
    '{"key": [1, 2.5, null, true], "päth": "C:\\\\x"}',
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "$E = mc^2$ \\frac{a}{b} \\alpha ≤ ∞ ∑",
    "====----____****////\\\\\\\\####",
    "!!!???...,,,;;;:::",
    "CamelCase snake_case kebab-case",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x\u0001\u0007\u001b[0m control",
    "{a} before {b}{a} and after{b}",
    "{a}user\nHi{b}\n{a}assistant\n",
    "<|not_special|> <|im_star t|>",
    "\U00020000 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀",
)
"""{a} and {b} stand for two special tokens of the tokenizer."""


def with_special(text: str, tokenizer: Any) -> str:
    """Replace {a} and {b} in a text with two special tokens of the tokenizer."""
    special = tokenizer.all_special_tokens
    return text.replace("{a}", special[0]).replace("{b}", special[-1])
