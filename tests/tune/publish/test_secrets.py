"""The places on a machine where keys lie are known."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tune.publish.secrets import known_secrets


def test_keys_of_the_environment_and_of_login_files_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("NETRC", "AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    written = {
        ".netrc": "machine api.wandb.ai login user password of-the-netrc\n",
        ".aws/credentials": "[default]\naws_secret_access_key = of-aws-files\nregion = somewhere\n",
        ".config/gcloud/application_default_credentials.json": '{"refresh_token": "of-google"}',
        ".pgpass": "host:5432:studies:me:of-postgres\n",
        "stored_tokens": "[mine]\nhf_token = of-the-hub-file\n",
    }
    for name, content in written.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o600)
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
    monkeypatch.setenv("WANDB_API_KEY", "of-the-environment")
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "another-of-the-environment")
    monkeypatch.setenv("SERVE_API_KEY_FILE", str(tmp_path / ".netrc"))
    monkeypatch.setenv("AUTH", "true")
    monkeypatch.setenv("LONG_TOKEN", 3 * "a-long-token-without-a-slash-" * 5)
    assert known_secrets() >= {
        "of-the-netrc", "of-aws-files", "of-google", "of-postgres", "of-the-hub-file",
        "of-the-environment", "another-of-the-environment",
        3 * "a-long-token-without-a-slash-" * 5,
    }  # fmt: skip
    assert not known_secrets() & {"true", "somewhere", str(tmp_path / ".netrc")}


def test_a_login_file_that_can_not_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("nonsense of no kind")
    (tmp_path / ".pgpass").write_text("host:5432:studies:me:of-postgres\n")
    monkeypatch.delenv("PGPASSFILE", raising=False)
    assert "of-postgres" in known_secrets()
