"""The service's outbox, inbox, dead letters and first answers."""

from loyalty.points.v1.points_events_pb2 import TransferRefused, TransferSent

from services.chassis.consumer import DeadLetters
from services.chassis.inbox import Inbox
from services.chassis.outbox import Outbox
from services.chassis.requests import Requests
from services.points import tables as t

OUTBOX = Outbox(
    t.outbox,
    t.stream_erasures,
    carrying=(TransferSent.DESCRIPTOR.full_name, TransferRefused.DESCRIPTOR.full_name),
)
INBOX = Inbox(t.inbox)
REQUESTS = Requests(t.requests)
DEAD_LETTERS = DeadLetters(t.dead_letters)
