"""Members who send each other points, one after the other, and a journal of it that audits the books."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loyalty.points.v1 import points_service_pb2 as pb

from services.points.domain.ledger import MAX_BALANCE
from tests.chaos.journal import SETTLE_TIMEOUT, Entry, Outcome, owner, rows_of, until
from tests.chaos.points import PointsJournal, announced, check_member
from tests.filling import gift, post
from tests.support import fresh

GIVEN = 10_000  # points that each member has at first


class Transfers(PointsJournal):
    """Each member sends to any of the others, or to one who can take no more."""

    async def prepare(self) -> None:
        """Gives the members what they send."""
        self.full = fresh("full")
        await post(self.house, [gift(member, GIVEN) for member in self.members])
        await post(self.house, [gift(self.full, MAX_BALANCE)])

    def _command(self, member: str) -> Entry:
        others = [other for other in self.members if other != member]
        to = self.full if self._random.random() < 0.3 else self._random.choice(others)
        amount = self._random.randint(1, 200)
        request = pb.TransferPointsRequest(
            member_id=member, request_id=fresh("r"), to_member_id=to, amount=amount
        )
        return Entry("TransferPoints", request)

    async def verify(self, patience: float = SETTLE_TIMEOUT) -> list[Any]:
        """Every transfer has ended, each in one of its two ways, and no point is lost or new."""
        connection = await owner(self.house)
        everyone = [*self.members, self.full]
        try:

            async def ended() -> bool:
                return not await connection.fetchval(_ON_THEIR_WAY, self.members)

            await until(ended, patience)
            ledger = await rows_of(connection, "transactions", everyone, order="seq")
            members = await rows_of(connection, "members", everyone)
            events = await announced(connection, everyone)
        finally:
            await connection.close()
        self._check_transfers(ledger)
        for member in members:
            mine = [row for row in ledger if row["member_id"] == member["member_id"]]
            check_member(member, mine, events[member["member_id"]])
        assert sum(m["available"] for m in members) == GIVEN * len(self.members) + MAX_BALANCE
        return list(ledger)

    def _check_transfers(self, ledger: Sequence[Any]) -> None:
        sent = {row["transaction_id"]: row for row in ledger if row["kind"] == "SEND"}
        asked = {e.request.request_id: e.request for e in self._of(Outcome.ACKNOWLEDGED)}
        assert not self._of(Outcome.UNKNOWN)
        assert Counter(row["request_id"] for row in sent.values()) == Counter(asked.keys())
        received = Counter(row["reference_id"] for row in ledger if row["kind"] == "RECEIVE")
        returned = Counter(row["reverses_transaction_id"] for row in ledger if row["kind"] == "REVERSE")
        assert received + returned == Counter(sent.keys())  # each exactly once
        for name, row in sent.items():
            request = asked[row["request_id"]]
            assert _moved(row) == request.amount
            assert (name in returned) == (request.to_member_id == self.full)
        for row in ledger:
            undone = row["reference_id"] if row["kind"] == "RECEIVE" else row["reverses_transaction_id"]
            if undone:
                assert _moved(row) == _moved(sent[undone])


def _moved(row: Any) -> int:
    return sum(amount for *_, amount in json.loads(row["transfers"]))


_ON_THEIR_WAY = """
SELECT count(*) FROM transactions s WHERE s.member_id = ANY($1) AND s.kind = 'SEND'
AND NOT EXISTS (SELECT FROM transactions r WHERE r.member_id = s.reference_id AND r.kind = 'RECEIVE'
                AND r.reference_id = s.transaction_id)
AND NOT EXISTS (SELECT FROM transactions b WHERE b.member_id = s.member_id AND b.kind = 'REVERSE'
                AND b.reverses_transaction_id = s.transaction_id)
"""
