"""What a service has sent and received of a member, erased here and in the streams."""

from __future__ import annotations

from services.chassis.consumer import DeadLetters
from services.chassis.database import Connection
from services.chassis.inbox import Inbox
from services.chassis.outbox import Outbox


async def forget(
    connection: Connection, member_id: str, outbox: Outbox, inbox: Inbox, dead_letters: DeadLetters
) -> tuple[int, int]:
    """Blanks a member's events, drops its dead letters, and has both and what it heard erased in the streams.

    Returns how many events and how many dead letters. That an event came stays known.
    """
    events = await outbox.erase(connection, member_id)
    received = await inbox.of_member(connection, member_id)
    refused = await dead_letters.erase(connection, member_id)
    await outbox.erase_later(connection, received + refused)
    return events, len(refused)
