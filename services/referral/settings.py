"""Settings of the referral service: environment variables REFERRAL_…"""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings, ZoneName


class ReferralSettings(ServiceSettings):
    """What the referral service has beyond every other."""

    model_config = SettingsConfigDict(env_prefix="REFERRAL_")

    time_zone: ZoneName = "Asia/Shanghai"
    """IANA name of the programme's zone, in which days and months are counted; as that of the points."""
    code_tries_per_minute: int = Field(10, ge=1, le=1_000)
    """Codes that nobody has which a caller may try for a member within a minute."""
