"""The service's outbox, inbox, dead letters and first answers."""

from services.chassis.answers import Answers
from services.chassis.consumer import DeadLetters
from services.chassis.inbox import Inbox
from services.chassis.outbox import Outbox
from services.chassis.requests import Requests
from services.groups import tables as t

OUTBOX = Outbox(t.outbox, t.stream_erasures)
INBOX = Inbox(t.inbox)
ANSWERS = Answers(t.answers, INBOX)
REQUESTS = Requests(t.requests)
DEAD_LETTERS = DeadLetters(t.dead_letters)
