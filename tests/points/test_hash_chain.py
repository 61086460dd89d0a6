"""docs/hash-chain.md holds: its vectors, by the service and by the words of the document alone."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.points.domain.ledger import (
    LONG_AGO,
    Account,
    Balances,
    Contribution,
    Transaction,
    TransactionKind,
    Transfer,
    Unit,
    transaction_hash,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "hash-chain.md"


def vectors() -> list[dict[str, Any]]:
    block = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    found: list[dict[str, Any]] = json.loads(block[1])
    return found


def to_transaction(fields: dict[str, Any]) -> Transaction:
    def instant(name: str) -> Any:
        return LONG_AGO + timedelta(microseconds=fields[name])

    return Transaction(
        **{
            **fields,
            "kind": TransactionKind(fields["kind"]),
            "payload_hash": bytes.fromhex(fields["payload_hash"]),
            "occur_time": instant("occur_time"),
            "create_time": instant("create_time"),
            "transfers": tuple(
                Transfer(Unit(unit), Account(debit), Account(credit), amount)
                for unit, debit, credit, amount in fields["transfers"]
            ),
            "contributions": tuple(
                Contribution(rule, Unit(unit), *rest) for rule, unit, *rest in fields["contributions"]
            ),
            "balance": Balances(*fields["balance"]),
        }
    )


def by_the_document(previous: str, fields: dict[str, Any]) -> str:
    """What a reader in another language would write."""
    names = ["member_id", "seq", "transaction_id", "kind", "request_id", "payload_hash", "order_id"]
    names += ["activity_id", "reference_id", "reverses_transaction_id"]
    names += ["occur_time", "create_time", "programme_version"]
    values = ["1", *(fields[name] for name in names)]
    for several in ("transfers", "contributions"):
        values += [len(fields[several]), *(" ".join(map(str, one)) for one in fields[several])]
    values.append(" ".join(map(str, fields["balance"])))
    content = bytes.fromhex(previous)
    for value in values:
        encoded = str(value).encode()
        content += str(len(encoded)).encode() + b":" + encoded + b","
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: str(vector["name"]))
def test_the_service_and_the_document_give_the_hash_of_the_vector(vector: dict[str, Any]) -> None:
    found = transaction_hash(bytes.fromhex(vector["previous"]), to_transaction(vector["transaction"]))
    assert found.hex() == by_the_document(vector["previous"], vector["transaction"]) == vector["hash"]


def test_the_vectors_are_three_links_of_one_chain_from_its_beginning() -> None:
    links = vectors()
    assert [link["transaction"]["seq"] for link in links] == [1, 2, 3]
    assert [link["previous"] for link in links] == ["", links[0]["hash"], links[1]["hash"]]


def test_every_field_is_held_by_the_hash() -> None:
    sample = to_transaction(vectors()[0]["transaction"])
    held = transaction_hash(b"", sample)
    tick = timedelta(microseconds=1)
    changes: dict[str, Any] = {
        "member_id": "member-8",
        "seq": 2,
        "transaction_id": "txn_2",
        "kind": TransactionKind.ADJUST,
        "request_id": "till-4712",
        "payload_hash": b"",
        "order_id": "order-2",
        "activity_id": "activity-1",
        "reference_id": "reference-1",
        "reverses_transaction_id": "txn_0",
        "occur_time": sample.occur_time + tick,
        "create_time": sample.create_time + tick,
        "programme_version": 4,
        "transfers": sample.transfers[::-1],
        "contributions": sample.contributions[:-1],
        "balance": replace(sample.balance, lifetime_earned=44),
    }
    hashes = {transaction_hash(b"", replace(sample, **{name: value})) for name, value in changes.items()}
    assert len(hashes | {held, transaction_hash(held, sample)}) == len(changes) + 2


def test_a_text_cannot_pass_for_the_fields_around_it() -> None:
    sample = to_transaction(vectors()[1]["transaction"])
    first = replace(sample, order_id="a", activity_id="", reference_id="b")
    second = replace(sample, order_id="", activity_id="a", reference_id="b")
    forged = replace(sample, order_id="1:a,0:", activity_id="", reference_id="b")
    assert len({transaction_hash(b"", each) for each in (first, second, forged)}) == 3
