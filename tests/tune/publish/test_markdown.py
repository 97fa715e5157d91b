"""Values in Markdown never become markup."""

from pathlib import Path

import pytest

from tune.publish.markdown import Markdown, code, escaped, fenced, templates


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("<img src=x>", r"\<img src=x>"),
        ("a | b\n| c", r"a \| b \| c"),
        ("*bold* _too_ `code` ~~no~~", r"\*bold\* \_too\_ \`code\` \~\~no\~\~"),
        ("# no heading", r"\# no heading"),
        ("1. no list", r"1\. no list"),
        ("- no list", r"\- no list"),
        ("&lt;b&gt; & Co", r"\&lt;b\&gt; & Co"),
        ("learning_rate=0.001 -1.25 Qwen/Qwen2", "learning_rate=0.001 -1.25 Qwen/Qwen2"),
        (Markdown("**is** markup"), "**is** markup"),
    ],
)
def test_a_value_is_text(value: object, written: str) -> None:
    assert escaped(value) == written


def test_code_ends_where_its_value_ends() -> None:
    assert code("a.b") == "`a.b`"
    assert code("a`b``c") == "```a`b``c```"
    assert code("`x`") == "`` `x` ``"
    assert fenced("a: '\n```\n'", "yaml") == "````yaml\na: '\n```\n'\n````"


def test_every_value_of_a_template_passes(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("# {{ name }}\n\n{{ name | code }} **mine**\n")
    made = templates(tmp_path).get_template("x.md").render(name="<b>*x*")
    assert made == "# \\<b>\\*x\\*\n\n`<b>*x*` **mine**\n"
