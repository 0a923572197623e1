import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import get_settings


@pytest.fixture
def here(monkeypatch, tmp_path, database_url):
    """An installation whose database answers and whose worker and sampler do not run."""
    monkeypatch.setenv("PAIRWRIGHT_DATABASE_URL", database_url)
    monkeypatch.setenv("PAIRWRIGHT_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    get_settings().make_home()
    yield monkeypatch
    get_settings.cache_clear()


def lines(*, code: int) -> dict[str, str]:
    """What doctor says, by the first word of what it looked at."""
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == code, done.output
    return {line[6:].split()[0].rstrip(":"): line for line in done.output.splitlines()}


def test_each_line_is_well_or_says_what_mends_it(here):
    said = lines(code=1)
    for name in ("Python", "torch", "settings", "data", "disk", "database", "schema", "worker"):
        assert said[name].startswith("ok"), said[name]
    assert said["sampler"].startswith("WRONG sampler: It does not answer. It runs with `pairwright serve`")


def test_a_misspelt_setting_is_found(here):
    here.setenv("PAIRWRIGHT_PROT", "9000")
    assert "PAIRWRIGHT_PROT: no such setting" in lines(code=1)["settings"]


def test_a_data_folder_open_to_others_is_found(here):
    get_settings().home.chmod(0o755)
    assert "Others may read it (mode 755). Run chmod 700 on it." in lines(code=1)["data"]


def test_a_database_that_does_not_answer_is_found_and_the_rest_still_looked_at(here):
    here.setenv("PAIRWRIGHT_DATABASE_URL", "postgresql://u:canary@127.0.0.1:9/d")
    get_settings.cache_clear()
    said = lines(code=1)
    assert "127.0.0.1:9 does not answer" in said["database"]
    assert "canary" not in str(said)
    assert "sampler" in said


def test_an_empty_database_is_told_to_be_migrated(here, empty_database_url):
    here.setenv("PAIRWRIGHT_DATABASE_URL", empty_database_url)
    get_settings.cache_clear()
    assert "It is empty. Run `pairwright migrate`." in lines(code=1)["schema"]
