from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from deepflow.errors import ConfigurationError
from deepflow.settings import Settings, load_settings, setting_sources


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in list(os.environ):
        if name.startswith("DEEPFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_anything_said_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings.address is None
    assert settings.infra_retries == 3
    assert set(setting_sources().values()) == {"default"}


def test_an_argument_wins_over_the_environment_and_that_over_the_file(
    monkeypatch, tmp_path
) -> None:
    (tmp_path / "deepflow.toml").write_text(
        "infra_retries = 1\nbatch_max_items = 1\nshutdown_s = 1\n"
    )
    monkeypatch.setenv("DEEPFLOW_INFRA_RETRIES", "2")
    monkeypatch.setenv("DEEPFLOW_BATCH_MAX_ITEMS", "2")
    settings = load_settings(infra_retries=3)
    said = (settings.infra_retries, settings.batch_max_items, settings.shutdown_s)
    assert said == (3, 2, 1.0)
    sources = setting_sources(["infra_retries"])
    assert [sources[n] for n in ("infra_retries", "batch_max_items", "shutdown_s", "address")] == [
        "argument",
        "environment",
        "file",
        "default",
    ]


def test_the_file_can_be_elsewhere(monkeypatch, tmp_path) -> None:
    elsewhere = tmp_path / "site.toml"
    elsewhere.write_text('address = "tcp://10.0.0.5:8786"\n')
    monkeypatch.setenv("DEEPFLOW_CONFIG", str(elsewhere))
    assert load_settings().address == "tcp://10.0.0.5:8786"


def test_nothing_is_kept_between_two_loads(monkeypatch) -> None:
    monkeypatch.setenv("DEEPFLOW_INFRA_RETRIES", "2")
    assert load_settings().infra_retries == 2
    monkeypatch.delenv("DEEPFLOW_INFRA_RETRIES")
    assert load_settings().infra_retries == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"infra_retry": 2}, "unknown setting 'infra_retry' .argument.; did you mean 'infra_ret"),
        ({"infra_retries": -2}, r"infra_retries=-2 \(from argument\) is too small; give .* from 0"),
        ({"shutdown_s": "x"}, r"shutdown_s='x' .* is no number; give a number above 0 up to 600"),
        ({"events": "some"}, "events='some'"),
        ({"events": "coalese"}, "is none of coalesce, all; did you mean 'coalesce'"),
        ({"journal": "perhaps"}, "give true or false"),
        ({"placement": "hetf"}, "placement='hetf' .* did you mean 'heft'"),
        ({"placement": ""}, "is empty; give text"),
        ({"compression": "zst"}, "compression='zst' .*did you mean 'zstd'"),
        ({"address": "127.0.0.1:8786x"}, "has the port '8786x'.* did you mean 127.0.0.1:8786"),
        ({"address": "http://x"}, "'http', which Dask does not speak; use one of tcp"),
        ({"address": "tcp://"}, "names no host"),
        ({"coalesce_after": 5000}, "lower coalesce_after or raise record_window_events"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_with_what_to_do(arguments, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_settings(**arguments)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DEEPFLOW_INFRA_RETRIES", "many", r"infra_retries='many' \(from environment\)"),
        ("DEEPFLOW_ADRESS", "tcp://x", "DEEPFLOW_ADRESS; did you mean 'DEEPFLOW_ADDRESS'"),
        ("DEEPFLOW_INFRA_RETRIES", "many", "is no whole number; give a whole number from 0 up to"),
        ("DEEPFLOW_PLACEMENT", "hetf", "from environment.*did you mean 'heft'"),
        ("DEEPFLOW_CONFIG", "/no/such.toml", "is no file"),
    ],
)
def test_a_wrong_variable_is_refused_with_what_to_do(monkeypatch, variable, value, words) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=words):
        load_settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("infra_rtries = 5", "unknown setting 'infra_rtries' .deepflow.toml.; did you mean"),
        ("infra_retries =", "cannot be read as TOML"),
        ("infra_retries = 500", r"infra_retries=500 \(from .*deepflow.toml\) is too large"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_do(tmp_path, text, words) -> None:
    (tmp_path / "deepflow.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        load_settings()


def test_what_pydantic_says_is_not_printed_before_the_sentence() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(infra_retries="many")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_settings_are_frozen_and_every_one_is_described() -> None:
    with pytest.raises(ValidationError):
        load_settings().infra_retries = 5  # type: ignore[misc]
    assert all(field.description for field in Settings.model_fields.values())
