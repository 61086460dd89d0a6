"""What a deployment says of itself: settings that cannot be meant are refused, and no secret is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from services.cards.settings import CardsSettings
from services.cli.house import House
from tests.cards.calls import claim, give, pay, sell
from tests.support import Cards, fresh

KEY = "k" * 32
WECHAT = {
    "WECHAT_KEYS": "/etc/cards/wechat",
    "WECHAT_MERCHANT_ID": "1900000109",
    "WECHAT_APP_IDS": '["wx1", "wx2"]',
    "WECHAT_API_V3_KEY": "a-secret-of-exactly-32-characters",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CardsSettings]:
    """Settings as these variables make them."""

    def read(**variables: str) -> CardsSettings:
        for name, value in variables.items():
            monkeypatch.setenv(f"CARDS_{name}", value)
        return CardsSettings()

    return read


def test_settings_are_read_from_the_environment(settings: Callable[..., CardsSettings]) -> None:
    found = settings(GIFT_CODE_KEY=KEY, TIME_ZONE="Asia/Urumqi", **WECHAT)
    assert found.gift_code_key is not None
    assert found.gift_code_key.get_secret_value() == KEY
    assert found.time_zone == "Asia/Urumqi"
    assert found.wechat_app_ids == frozenset({"wx1", "wx2"})
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"GIFT_CODE_KEY": "a-secret-too-short"}, "gift_code_key"),
        ({"TIME_ZONE": "Mars/Olympus"}, "time_zone"),
        ({"TIME_ZONE": "../../etc/passwd"}, "time_zone"),
        *(({**WECHAT, name: value}, "WECHAT_KEYS needs") for name, value in {
            "WECHAT_MERCHANT_ID": "", "WECHAT_APP_IDS": "[]", "WECHAT_API_V3_KEY": "",
        }.items()),
    ],
    ids=["a short key", "no zone", "a path", "no merchant", "no app", "no key"],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_without_telling_a_secret(
    settings: Callable[..., CardsSettings], variables: dict[str, str], what: str
) -> None:
    with pytest.raises(ValidationError, match=what) as refusal:
        settings(**variables)
    assert "a-secret" not in str(refusal.value)


def test_a_migration_needs_no_key(settings: Callable[..., CardsSettings]) -> None:
    assert settings().gift_code_key is None


def test_under_another_key_codes_are_good_but_not_told_again(houses: Callable[[str], House]) -> None:
    house = houses("grpcio")
    process = house.start_replica("cards", gift_code_key="another key of at least 32 letters")
    house.wait_ready(process)
    with Cards(house) as before, Cards(house, service=process) as after:
        asked: dict[str, Any] = {"member": fresh("giver"), "sold": sell(before, gift_claim_days=1)}
        asked["request_id"] = fresh("gift")
        gift = give(before, **asked)
        assert give(before, **asked) == gift
        again = give(after, **asked)
        assert (again.order, again.claim_code) == (gift.order, "")
        pay(after, gift.order)
        claim(after, fresh("taker"), gift.claim_code)
    house.process(process).stop()
