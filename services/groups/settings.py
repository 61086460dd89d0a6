"""Settings of the groups service: environment variables GROUPS_…"""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings, ZoneName


class GroupsSettings(ServiceSettings):
    """What the groups service has beyond every other."""

    model_config = SettingsConfigDict(env_prefix="GROUPS_", hide_input_in_errors=True)  # it may be a secret

    time_zone: ZoneName = "Asia/Shanghai"
    """IANA name of the programme's zone, in which days are counted; as that of the points."""
    currency_code: str = Field("CNY", pattern="^[A-Z]{3}$")
    """Of the orders that count in facts; orders in another currency are not kept."""

    wecom_corp_id: str = ""
    """Whose customer chats in WeCom groups are; without it chats and links are attached by hand."""
    wecom_secret: SecretStr = SecretStr("")
    """Of the app that may ask for customer chats."""
    wecom_token: SecretStr = SecretStr("")
    """With which WeCom signs its callbacks."""
    wecom_aes_key: SecretStr = SecretStr("")
    """The EncodingAESKey, with which it seals them; 43 letters and digits."""
    wecom_url: str = Field("https://qyapi.weixin.qq.com", pattern=r"^(https://|http://127\.0\.0\.1[:/])")
    """Where WeCom is asked; another one for a gateway of your own."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        secrets = (self.wecom_secret, self.wecom_token, self.wecom_aes_key)
        if self.wecom_corp_id and not all(secret.get_secret_value() for secret in secrets):
            raise ValueError("WECOM_CORP_ID needs WECOM_SECRET, WECOM_TOKEN and WECOM_AES_KEY")
        return self
