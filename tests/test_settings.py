import stat
from pathlib import Path

import pytest

from app.cli.settings_page import settings_page
from app.settings import Settings, SettingsError, get_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """get_settings reads the environment anew."""
    monkeypatch.setenv("PAIRWRIGHT_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield monkeypatch
    get_settings.cache_clear()


def test_every_setting_is_described_and_the_page_is_up_to_date():
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("weak", ["short", "a" * 64, "abcabcabcabcabcabcabcabcabcabcabcabc"])
def test_a_weak_secret_is_refused_by_name_and_never_shown(fresh, weak):
    fresh.setenv("PAIRWRIGHT_SECRET_KEY", weak)
    with pytest.raises(SettingsError) as refused:
        get_settings()
    assert "PAIRWRIGHT_SECRET_KEY" in refused.value.message
    assert weak not in refused.value.message


def test_a_strong_secret_is_taken(fresh):
    fresh.setenv("PAIRWRIGHT_SECRET_KEY", "k3J9-vT0q_Zx71LmWc84RsYpBn62HdQe")
    assert get_settings().signing_key() == "k3J9-vT0q_Zx71LmWc84RsYpBn62HdQe"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("DATABASE_URL", "mysql://u:topsecret@h/d"),
        ("PUBLIC_URL", "judge.example.org"),
        ("STARTER", "huge"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_without_its_value(fresh, name, value):
    fresh.setenv(f"PAIRWRIGHT_{name}", value)
    with pytest.raises(SettingsError) as refused:
        get_settings()
    assert f"PAIRWRIGHT_{name}" in refused.value.message
    assert "\n" not in refused.value.message
    assert "topsecret" not in refused.value.message


def test_two_installations_have_different_secrets_in_files_of_their_owner_alone(tmp_path):
    keys = set()
    for name in ("one", "two"):
        settings = Settings(home=tmp_path / name).make_home()
        keys.add(settings.signing_key())
        assert settings.signing_key() == settings.signing_key()
        assert stat.S_IMODE((settings.home / "secret").stat().st_mode) == 0o600
        assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
    assert len(keys) == 2
    assert all(len(key) == 64 for key in keys)


def test_a_secret_file_made_weak_by_hand_refuses_to_serve(tmp_path):
    settings = Settings(home=tmp_path / "home").make_home()
    (settings.home / "secret").write_text("password\n")
    with pytest.raises(SettingsError, match="weak"):
        settings.signing_key()


def test_a_data_folder_open_to_others_is_closed(tmp_path):
    (tmp_path / "home").mkdir(mode=0o755)
    Settings(home=tmp_path / "home").make_home()
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_the_socket_of_a_deep_data_folder_is_short_private_and_remembered(tmp_path):
    settings = Settings(home=tmp_path / ("deep" * 30)).make_home()
    socket = settings.sampler_socket
    assert len(str(socket)) <= 100
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert Settings(home=settings.home).sampler_socket == socket
    socket.parent.chmod(0o777)
    assert settings.sampler_socket != socket, "a folder that others may write is not taken again"


def test_secrets_may_come_as_files(fresh, tmp_path):
    (tmp_path / "pairwright_database_url").write_text("postgresql://u:p@h/d")
    fresh.setenv("PAIRWRIGHT_SECRETS_DIR", str(tmp_path))
    url = get_settings().database_url
    assert url is not None
    assert url.get_secret_value() == "postgresql://u:p@h/d"


def test_the_address_is_what_people_type():
    assert Settings(port=8100).address == "http://127.0.0.1:8100"
    assert Settings(host="0.0.0.0").address == "http://127.0.0.1:8000"
    assert Settings(host="::1").address == "http://[::1]:8000"
    assert Settings(public_url="https://judge.example.org/").address == "https://judge.example.org"
