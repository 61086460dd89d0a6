"""What a deployment says of itself: settings that cannot be meant are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from services.groups.settings import GroupsSettings


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., GroupsSettings]:
    """Settings as these variables make them."""

    def read(**variables: str) -> GroupsSettings:
        for name, value in variables.items():
            monkeypatch.setenv(f"GROUPS_{name}", value)
        return GroupsSettings()

    return read


def test_settings_are_read_from_the_environment(settings: Callable[..., GroupsSettings]) -> None:
    found = settings(TIME_ZONE="Asia/Urumqi", CURRENCY_CODE="HKD")
    assert (found.time_zone, found.currency_code) == ("Asia/Urumqi", "HKD")


def test_a_deployment_that_says_nothing_is_in_china(settings: Callable[..., GroupsSettings]) -> None:
    assert (settings().time_zone, settings().currency_code) == ("Asia/Shanghai", "CNY")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIME_ZONE", "Mars/Olympus"),
        ("TIME_ZONE", "../../etc/passwd"),
        ("CURRENCY_CODE", "yuan"),
        ("CURRENCY_CODE", ""),
    ],
)
def test_what_cannot_be_meant_is_refused(
    settings: Callable[..., GroupsSettings], name: str, value: str
) -> None:
    with pytest.raises(ValidationError, match=name.lower()):
        settings(**{name: value})
