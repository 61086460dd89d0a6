"""The service's outbox, inbox, dead letters and first answers, and how long they are kept."""

from datetime import timedelta

from services.chassis.consumer import DeadLetters
from services.chassis.inbox import Inbox
from services.chassis.outbox import Outbox
from services.chassis.requests import Requests
from services.groups import tables as t

OUTBOX = Outbox(t.outbox, t.stream_erasures)
INBOX = Inbox(t.inbox)
REQUESTS = Requests(t.requests)
DEAD_LETTERS = DeadLetters(t.dead_letters)
OUTBOX_KEPT = timedelta(days=30)  # of wall time, as long as the stream keeps them
INBOX_KEPT = timedelta(days=90)
