"""Every SQL statement of the service, and rows to domain and back."""

from services.chassis.tables import epoch
from services.points.store.batch import load_growth, lock, save, sum_growth
from services.points.store.boxes import DEAD_LETTERS, INBOX, OUTBOX, REQUESTS
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
    find_hold,
    find_transaction,
    open_holds,
    page,
    read_members,
)
from services.points.store.rows import BALANCES, to_transaction
from services.points.store.wanted import Changes, Entry, RefundRow, Seen, Sold, Wanted

__all__ = [
    "BALANCES",
    "DEAD_LETTERS",
    "INBOX",
    "OUTBOX",
    "REQUESTS",
    "Changes",
    "Entry",
    "Filter",
    "RefundRow",
    "Seen",
    "Sold",
    "Wanted",
    "add_programme",
    "any_transaction",
    "caps",
    "due_members",
    "epoch",
    "erase",
    "find_hold",
    "find_transaction",
    "head_version",
    "load_growth",
    "lock",
    "lock_last_programme",
    "open_holds",
    "page",
    "programme",
    "programme_page",
    "read_members",
    "save",
    "sum_growth",
    "to_transaction",
]
