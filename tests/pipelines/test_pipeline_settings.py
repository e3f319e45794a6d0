"""The settings' defaults and limits, and the exact parameters that follow from them."""

import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.settings import Parameters, PipelineSettings

DEFAULTS = Parameters(
    task_window=100,
    completeness_threshold=Fraction(4, 5),
    dominance_threshold=Fraction(1, 20),
    min_validator_stake_rao=5_000_000_000_000,
)


@pytest.fixture
def environment(monkeypatch):
    """An environment without any of our settings, to set some in."""
    for name in PipelineSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch.setenv


def test_defaults_are_the_published_ones(environment):
    assert PipelineSettings().parameters() == DEFAULTS
    assert PipelineSettings().netuid == 99


def test_settings_come_from_the_environment_without_a_prefix(environment):
    environment("CHAIN_SOURCE", "metagraph.json")
    environment("NETUID", "7")
    environment("MIN_VALIDATOR_STAKE", "12345.678")
    environment("SCORER_TASK_WINDOW", "20")
    environment("SCORER_COMPLETENESS_THRESHOLD", "0.333333333")
    environment("DOMINANCE_THRESHOLD", "0.1")

    settings = PipelineSettings()

    assert (settings.chain_source, settings.netuid) == ("metagraph.json", 7)
    assert settings.parameters() == Parameters(
        task_window=20,
        completeness_threshold=Fraction(333_333_333, 10**9),
        dominance_threshold=Fraction(1, 10),
        min_validator_stake_rao=12_345_678_000_000,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chain_source", "http://node"),
        ("chain_source", "wss://node,metagraph.json"),
        ("chain_source", "wss://node,http://node"),
        ("chain_genesis", "0x12"),
        ("chutes_api_url", "api.chutes.ai"),
        ("hf_endpoint", "file:///etc"),
        ("validation_concurrency_max", 0),
        ("netuid", -1),
        ("netuid", 65_536),
        ("min_validator_stake", Decimal(-1)),
        ("min_validator_stake", Decimal("NaN")),
        ("min_validator_stake", Decimal("0.0000000001")),
        ("min_validator_stake", Decimal("1e10")),
        ("scorer_task_window", 0),
        ("scorer_completeness_threshold", Decimal("1.1")),
        ("scorer_completeness_threshold", Decimal("-0.1")),
        ("dominance_threshold", Decimal("Infinity")),
        ("dominance_threshold", Decimal("-0.05")),
        ("chain_sync_interval_seconds", 0),
        ("chain_sync_interval_seconds", 90),
        ("chain_sync_interval_seconds", 420),
        ("weights_valid_seconds", 0),
        ("sensor_interval_seconds", 0),
    ],
)
def test_what_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        PipelineSettings.model_validate({name: value})


def test_nodes_are_listed_with_commas_and_a_file_is_no_node():
    listed = PipelineSettings(chain_source="wss://one:443, ws://two:9944")
    assert listed.chain_endpoints == ("wss://one:443", "ws://two:9944")
    assert PipelineSettings(chain_source="metagraph.json").chain_endpoints == ()
    assert PipelineSettings(chain_source="").chain_endpoints == ()


def test_secrets_are_not_shown():
    settings = PipelineSettings(chutes_api_key="cpk-hidden", hf_token="hf-hidden")
    assert "hidden" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_an_address_with_a_key_is_not_shown():
    for name, scheme in (
        ("chain_source", "wss"),
        ("chutes_api_url", "https"),
        ("hf_endpoint", "http"),
    ):
        assert "hidden" not in repr(PipelineSettings(**{name: f"{scheme}://me:hidden@host"}))
    with pytest.raises(ValidationError) as caught:
        PipelineSettings(chain_source="wss://me:hidden@node,http://node")
    assert "hidden" not in str(caught.value)


def test_settings_do_not_change_after_they_were_read():
    with pytest.raises(ValidationError, match="frozen"):
        PipelineSettings().netuid = 1


def test_every_setting_says_what_it_is():
    assert all(field.description for field in PipelineSettings.model_fields.values())


def test_parameters_have_one_canonical_text():
    assert DEFAULTS.as_json() == (
        '{"completeness_threshold":"0.8","dominance_threshold":"0.05",'
        '"min_validator_stake_rao":5000000000000,"task_window":100}'
    )


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(1), "1"),
        (Fraction(1, 10**9), "0.000000001"),
        (Fraction(Decimal("0.123456789")), "0.123456789"),
        (Fraction(1, 3), "1/3"),
    ],
)
def test_a_threshold_is_written_as_the_decimal_that_it_is(fraction, text):
    written = json.loads(replace(DEFAULTS, dominance_threshold=fraction).as_json())

    assert written["dominance_threshold"] == text


fractions = st.fractions(0, 1) | st.decimals(0, 1, places=9).map(Fraction)


@given(st.integers(1), fractions, fractions, st.integers(0))
def test_parameters_survive_their_text(window, completeness, dominance, stake_rao):
    given_parameters = Parameters(window, completeness, dominance, stake_rao)

    assert Parameters.from_json(given_parameters.as_json()) == given_parameters
