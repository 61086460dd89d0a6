"""Every SQL statement of the service, and rows to domain and back."""

from services.points.store.batch import Changes, Entry, Seen, Wanted, lock, save
from services.points.store.boxes import INBOX, INBOX_KEPT, OUTBOX, OUTBOX_KEPT, REQUESTS
from services.points.store.erasure import erase
from services.points.store.programmes import (
    add_programme,
    any_transaction,
    head_version,
    lock_last_programme,
    programme,
    programme_page,
)
from services.points.store.reads import (
    Filter,
    caps,
    due_members,
    epoch,
    find_transaction,
    page,
    read_members,
)
from services.points.store.rows import BALANCES, to_transaction

__all__ = [
    "BALANCES",
    "INBOX",
    "INBOX_KEPT",
    "OUTBOX",
    "OUTBOX_KEPT",
    "REQUESTS",
    "Changes",
    "Entry",
    "Filter",
    "Seen",
    "Wanted",
    "add_programme",
    "any_transaction",
    "caps",
    "due_members",
    "epoch",
    "erase",
    "find_transaction",
    "head_version",
    "lock",
    "lock_last_programme",
    "page",
    "programme",
    "programme_page",
    "read_members",
    "save",
    "to_transaction",
]
