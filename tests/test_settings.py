"""Settings: secrets in files."""

import pytest

from mailglass_reconcile import ConfigurationError, Settings

pytestmark = pytest.mark.version_independent

SECRETS = ("database_url", "redis_url", "web_token", "webhook_url")


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("where", ["environment", "Python"])
def test_a_secret_is_read_from_the_file_that_its_setting_names(monkeypatch, tmp_path, name, where):
    """The line break at its end, which editors add, is removed."""
    file = tmp_path / "secret"
    file.write_text("redis://:c4n4ry@host/0\n")
    arguments = {}
    if where == "environment":
        monkeypatch.setenv(f"MAILGLASS_{name.upper()}", f"@{file}")
    else:
        arguments[name] = f"@{file}"
    assert getattr(Settings(**arguments), name).get_secret_value() == "redis://:c4n4ry@host/0"


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot read its file: No such file or directory"),
        (b"\n", "its file is empty"),
        (b"\xff\xfec4n4ry", "cannot read its file: it is not text in UTF-8"),
        (b"@c4n4ry-of-24-characters", "its value must not begin with @, which names a file"),
    ],
)
def test_a_secret_that_cannot_be_read_is_refused_by_the_name_of_its_setting(tmp_path, name, content, fault):
    """The line has neither the path nor the contents: it may be a token rather than a path."""
    file = tmp_path / "c4n4ry"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"^MAILGLASS_{name.upper()}: {fault}$"):
        Settings(**{name: f"@{file}"})


def test_a_token_that_begins_with_an_at_sign_is_refused(monkeypatch):
    """It would be taken for the path of a file."""
    monkeypatch.setenv("MAILGLASS_WEB_TOKEN", "@token-of-24-characters")
    with pytest.raises(ConfigurationError, match=r"^MAILGLASS_WEB_TOKEN: cannot read its file") as refused:
        Settings()
    assert "token-of-24" not in str(refused.value)
