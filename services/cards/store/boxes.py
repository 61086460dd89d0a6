"""The service's outbox, inbox, dead letters and first answers."""

from loyalty.cards.v1.cards_events_pb2 import CardOrdered, CardOrderSettled, RefundDue

from services.cards import tables as t
from services.chassis.answers import Answers
from services.chassis.consumer import DeadLetters
from services.chassis.inbox import Inbox
from services.chassis.outbox import Outbox
from services.chassis.requests import Requests

OUTBOX = Outbox(
    t.outbox,
    t.stream_erasures,
    # Whoever has not heard yet that points are asked for, or money is owed, must not miss it.
    carrying=(
        CardOrdered.DESCRIPTOR.full_name,
        CardOrderSettled.DESCRIPTOR.full_name,
        RefundDue.DESCRIPTOR.full_name,
    ),
)
INBOX = Inbox(t.inbox)
ANSWERS = Answers(t.answers, INBOX)
REQUESTS = Requests(t.requests)
DEAD_LETTERS = DeadLetters(t.dead_letters)
