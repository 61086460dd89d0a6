"""What a deployment says of itself: settings that cannot be meant are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from services.referral.settings import ReferralSettings


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ReferralSettings]:
    """Settings as these variables make them."""

    def read(**variables: str) -> ReferralSettings:
        for name, value in variables.items():
            monkeypatch.setenv(f"REFERRAL_{name}", value)
        return ReferralSettings()

    return read


def test_settings_are_read_from_the_environment(settings: Callable[..., ReferralSettings]) -> None:
    found = settings(TIME_ZONE="Asia/Urumqi", CODE_TRIES_PER_MINUTE="3")
    assert (found.time_zone, found.code_tries_per_minute) == ("Asia/Urumqi", 3)


def test_a_deployment_that_says_nothing_is_in_china(settings: Callable[..., ReferralSettings]) -> None:
    assert (settings().time_zone, settings().code_tries_per_minute) == ("Asia/Shanghai", 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIME_ZONE", "Mars/Olympus"),
        ("TIME_ZONE", "../../etc/passwd"),
        ("CODE_TRIES_PER_MINUTE", "0"),
        ("CODE_TRIES_PER_MINUTE", "1001"),
        ("CODE_TRIES_PER_MINUTE", "many"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    settings: Callable[..., ReferralSettings], name: str, value: str
) -> None:
    with pytest.raises(ValidationError, match=name.lower()):
        settings(**{name: value})
