"""Every SQL statement of the service, and rows to domain and back."""

from services.cards.store.batch import lock, save
from services.cards.store.boxes import DEAD_LETTERS, INBOX, OUTBOX, REQUESTS
from services.cards.store.erasure import Erased, erase
from services.cards.store.products import (
    add_product,
    lock_last_product,
    product,
    product_heads,
    product_page,
    products,
)
from services.cards.store.reads import (
    Saving,
    card,
    card_page,
    code_hash,
    due_members,
    member,
    member_of_order,
    open_renewals,
    order,
    order_page,
    payments_astray,
    payments_of,
    redemption_page,
    savings,
    settling,
    to_whole_card,
    unclaimed_gifts,
    unreturned,
    wallets,
)
from services.cards.store.rows import to_order, to_use
from services.cards.store.wanted import Changes, Seen, Wanted
from services.chassis.tables import epoch

__all__ = [
    "DEAD_LETTERS",
    "INBOX",
    "OUTBOX",
    "REQUESTS",
    "Changes",
    "Erased",
    "Saving",
    "Seen",
    "Wanted",
    "add_product",
    "card",
    "card_page",
    "code_hash",
    "due_members",
    "epoch",
    "erase",
    "lock",
    "lock_last_product",
    "member",
    "member_of_order",
    "open_renewals",
    "order",
    "order_page",
    "payments_astray",
    "payments_of",
    "product",
    "product_heads",
    "product_page",
    "products",
    "redemption_page",
    "save",
    "savings",
    "settling",
    "to_order",
    "to_use",
    "to_whole_card",
    "unclaimed_gifts",
    "unreturned",
    "wallets",
]
