"""URLs of `runs_dir` and `storage` that are refused, and the messages."""

import pytest

from dpo_train.errors import InputError
from tune.config.checks import check
from tune.config.schema import SearchConfig


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/runs", "holds a secret"),
        ("s3://key@bucket/runs", "holds a secret"),
        ("abfs://c@a.dfs.core.windows.net/runs?client_secret=x", "holds a secret"),
        ("ftp://host/runs", "names no store"),
        ("s3:///runs", "names no store"),
        ("s3://bucket/runs?endpoint_override=" + "y" * 300, "is too long"),
        ("gs://hidden@bucket/runs", "holds a secret"),
        ("https://host/runs?sig=hidden", "names no store"),
        ("abfs://c@a.dfs.core.windows.net/runs?sig=hidden", "holds a secret"),
        ("s3://bucket/runs?passwd=hidden", "holds a secret"),
        ("s3://[hidden/runs", "not a valid one"),
    ],
)
def test_a_url_that_can_be_seen_to_be_wrong_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^runs_dir: .*{message}") as raised:
        check(SearchConfig(name="x", trials=1, runs_dir=url))
    assert "secret@" not in str(raised.value)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hidden@host/studies",
        "postgresql://host/studies?sslpassword=hidden",
        "mysql://host/studies?passwd=hidden",
        "postgresql://[hidden/studies",
    ],
)
def test_a_storage_with_a_secret_is_refused_without_its_text(url: str) -> None:
    with pytest.raises(InputError, match=r"^storage: ") as raised:
        check(SearchConfig(name="x", trials=1, storage=url))
    assert "hidden" not in str(raised.value)
