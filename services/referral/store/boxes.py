"""The service's outbox, inbox, dead letters and first answers."""

from loyalty.referral.v1.referral_events_pb2 import (
    InviteeBound,
    InviteeDropped,
    InviteeQualified,
    InviteeRevoked,
    RewardClawedBack,
)

from services.chassis.answers import Answers
from services.chassis.consumer import DeadLetters
from services.chassis.inbox import Inbox
from services.chassis.outbox import Outbox
from services.chassis.requests import Requests
from services.referral import tables as t

OUTBOX = Outbox(
    t.outbox,
    t.stream_erasures,
    # An inviter who has not heard yet must not miss what became of its invitees, nor those who gave something
    # that it is taken back. A reward that is to be given is told again.
    carrying=tuple(
        told.DESCRIPTOR.full_name
        for told in (InviteeBound, InviteeQualified, InviteeRevoked, InviteeDropped, RewardClawedBack)
    ),
)
INBOX = Inbox(t.inbox)
ANSWERS = Answers(t.answers, INBOX)
REQUESTS = Requests(t.requests)
DEAD_LETTERS = DeadLetters(t.dead_letters)
