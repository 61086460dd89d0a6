"""Messaging platforms: what groups ask of them, and what they tell, each in the words of the groups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from services.groups.domain.seats import Group
from services.groups.errors import CallbackRefused, PlatformRefused


class ChatChange(StrEnum):
    """What a platform tells of a chat."""

    NAMED = "NAMED"
    """It was made, or has another name."""
    CAME = "CAME"
    LEFT = "LEFT"
    DISMISSED = "DISMISSED"
    """It is no more."""


@dataclass(frozen=True, slots=True)
class Callback:
    """What a platform called us with, as it came."""

    signature: str
    timestamp: str
    nonce: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a callback tells of a chat."""

    chat_id: str
    change: ChatChange
    occur_time: datetime
    contact_ids: tuple[str, ...] = ()
    """Who came or left, by the platform's ids."""
    removed: bool = False
    """Whoever left did not do so by themselves."""
    version: str = ""
    """What tells it from another change of who is in the chat, within the same second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Somebody in a chat who is no staff."""

    contact_id: str
    """The platform's id."""
    union_id: str
    """The id that the brand's other channels know, too; empty where the platform does not tell it."""
    join_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A chat as it is now."""

    chat_id: str
    name: str
    contacts: tuple[Contact, ...]


class Messaging(Protocol):
    """One more platform is one more class with these methods.

    All but the first two ask the platform: they raise PlatformUnavailable and PlatformRefused.
    """

    def read(self, callback: Callback) -> Told | None:
        """What a callback tells; None where it is about no chat of customers. Raises CallbackRefused."""
        ...

    def echo(self, signature: str, timestamp: str, nonce: str, sealed: str) -> str:
        """What to answer to a platform that checks where it calls. Raises CallbackRefused."""
        ...

    async def chat(self, chat_id: str) -> Chat:
        """A chat, as the platform has it."""
        ...

    async def entry_link(self, group: Group, *, goes_on: bool) -> str:
        """A new link by which the chat of a group is entered.

        `goes_on` means that the platform may open further chats behind it, numbered on as groups are.
        """
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


class Closed:
    """No platform is set up: chats and links are attached by hand."""

    def read(self, callback: Callback) -> Told | None:  # noqa: ARG002 - looks at nothing
        """Raises CallbackRefused."""
        raise CallbackRefused(cause="no messaging platform is set up")

    def echo(self, signature: str, timestamp: str, nonce: str, sealed: str) -> str:  # noqa: ARG002 - as above
        """Raises CallbackRefused."""
        raise CallbackRefused(cause="no messaging platform is set up")

    async def chat(self, chat_id: str) -> Chat:
        """Raises PlatformRefused."""
        raise PlatformRefused(chat_id=chat_id)

    async def entry_link(self, group: Group, *, goes_on: bool) -> str:  # noqa: ARG002 - as above
        """Raises PlatformRefused."""
        raise PlatformRefused(group_id=group.group_id)

    async def close(self) -> None:
        """Has nothing to let go."""
