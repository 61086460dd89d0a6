"""Settings of the cards service: environment variables CARDS_…"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings, ZoneName


class CardsSettings(ServiceSettings):
    """What the cards service has beyond every other."""

    model_config = SettingsConfigDict(env_prefix="CARDS_", hide_input_in_errors=True)  # it may be a secret

    time_zone: ZoneName = "Asia/Shanghai"
    """IANA name of the programme's zone, in which days and months are counted; as that of the points."""
    gift_code_key: SecretStr | None = Field(None, min_length=32)
    """Makes the claim codes of gifts; `serve` needs it. With another key, codes are not told again."""

    wechat_keys: Path | None = None
    """Folder of the platform's public keys; without it WeChat Pay's notifications are refused."""
    wechat_merchant_id: str = ""
    """Whose notifications they must be."""
    wechat_app_ids: frozenset[str] = frozenset()
    """The apps in which members pay, as a JSON list."""
    wechat_api_v3_key: SecretStr = SecretStr("")
    """Opens what the platform sealed; 32 bytes."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        sealed = self.wechat_api_v3_key.get_secret_value()
        if self.wechat_keys and not (self.wechat_merchant_id and self.wechat_app_ids and sealed):
            raise ValueError("WECHAT_KEYS needs WECHAT_MERCHANT_ID, WECHAT_APP_IDS and WECHAT_API_V3_KEY")
        return self
