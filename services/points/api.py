"""The gRPC edge: who may call what, and one transaction per call or gathered batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from loyalty.activities.v1 import activities_service_pb2 as activities_pb
from loyalty.activities.v1.activities_pb2 import ActivityReported
from loyalty.activities.v1.activities_service_pb2_grpc import ActivitiesServiceServicer
from loyalty.orders.v1 import orders_service_pb2 as orders_pb
from loyalty.orders.v1.orders_pb2 import OrderPaid, OrderRefunded
from loyalty.orders.v1.orders_service_pb2_grpc import OrdersServiceServicer
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceServicer

from services.chassis import pagination
from services.chassis.auth import CALLER, Access, MemberAccess, authorise
from services.chassis.clock import Clock, wall
from services.chassis.database import Connection, Database, Row, shielded
from services.chassis.ids import number_of
from services.chassis.outbox import Event
from services.chassis.requests import Operators, payload_hash
from services.chassis.telemetry import TRACEPARENT
from services.chassis.timestamps import instant, instant_of, timestamp
from services.points import events, messages, putting, rules, service, store
from services.points.batches import Batches
from services.points.commands import (
    CloseHold,
    Command,
    PlaceHold,
    Redeem,
    RefundOrder,
    Reverse,
    Send,
)
from services.points.domain.ledger import HoldState, Transaction, Unit
from services.points.errors import HoldUnknown, MemberUnknown, ProgrammeUnknown, TransactionUnknown
from services.points.messages import SERVICE
from services.points.rules import Programmes

Context = grpc.aio.ServicerContext[Any, Any]

Shown = TypeVar("Shown", bound=Message)

EXPORTED_HOLDS = 1_000

READ, WRITE, ADMIN = "points.read", "points.write", messages.ADMIN
EARN, ADJUST = f"{SERVICE}EarnPoints", f"{SERVICE}AdjustPoints"

# Who may call what. A member token reads its own; nothing that gives value is open to it.
METHODS = {
    EARN: Access(WRITE),
    f"{SERVICE}QuoteEarn": Access(READ, MemberAccess.READ),
    f"{SERVICE}RedeemPoints": Access(WRITE),
    f"{SERVICE}HoldPoints": Access(WRITE),
    f"{SERVICE}CaptureHold": Access(WRITE),
    f"{SERVICE}ReleaseHold": Access(WRITE),
    f"{SERVICE}GetHold": Access(READ, MemberAccess.READ),
    f"{SERVICE}RefundOrder": Access(WRITE),
    f"{SERVICE}ReverseTransaction": Access(WRITE),
    f"{SERVICE}TransferPoints": Access(WRITE),
    ADJUST: Access(ADMIN),
    f"{SERVICE}BatchPost": Access(WRITE),
    f"{SERVICE}GetBalance": Access(READ, MemberAccess.READ),
    f"{SERVICE}BatchGetBalances": Access(READ),
    f"{SERVICE}GetTransaction": Access(READ, MemberAccess.READ),
    f"{SERVICE}ListTransactions": Access(READ, MemberAccess.READ),
    f"{SERVICE}PutProgramme": Access(ADMIN),
    f"{SERVICE}GetProgramme": Access(READ),
    f"{SERVICE}ListProgrammes": Access(READ),
    f"{SERVICE}ExportMember": Access(ADMIN),
    f"{SERVICE}EraseMember": Access(ADMIN),
    "/loyalty.orders.v1.OrdersService/ReportOrderPaid": Access(WRITE),
    "/loyalty.orders.v1.OrdersService/ReportOrderRefunded": Access(WRITE),
    "/loyalty.activities.v1.ActivitiesService/ReportActivity": Access(WRITE),
}


class PointsApi(PointsServiceServicer):
    """loyalty.points.v1.PointsService."""

    def __init__(self, database: Database, clock: Clock, programmes: Programmes, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._programmes = programmes
        self._batches = batches
        self._operators = Operators(database, clock, store.REQUESTS, SERVICE, batches.wake)

    # --- writes that are gathered ---------------------------------------------------------------------

    async def EarnPoints(self, request: pb.EarnPointsRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        return await self._post(messages.earning(request))

    async def RedeemPoints(self, request: pb.RedeemPointsRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        return await self._post(
            Redeem(
                **messages.asked("RedeemPoints", request),
                amount=request.amount,
                reference_id=request.reference_id,
            )
        )

    async def HoldPoints(self, request: pb.HoldPointsRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        return await self._post(
            PlaceHold(
                **messages.asked("HoldPoints", request),
                amount=request.amount,
                reference_id=request.reference_id,
                expire_time=instant(request.expire_time),
            )
        )

    async def CaptureHold(self, request: pb.CaptureHoldRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        common = messages.asked("CaptureHold", request)
        return await self._post(CloseHold(**common, hold_id=request.hold_id, capture=request.amount))

    async def ReleaseHold(self, request: pb.ReleaseHoldRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        common = messages.asked("ReleaseHold", request)
        return await self._post(CloseHold(**common, hold_id=request.hold_id, capture=None))

    async def RefundOrder(self, request: pb.RefundOrderRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        common = messages.asked("RefundOrder", request)
        return await self._post(RefundOrder(**common | rules.read_refund(request.refund)))

    async def ReverseTransaction(
        self, request: pb.ReverseTransactionRequest, context: Context
    ) -> pb.Transaction:
        """See the contract."""
        return await self._post(
            Reverse(
                **messages.asked("ReverseTransaction", request),
                transaction_id=request.transaction_id,
                amounts={messages.UNITS[each.unit]: each.amount for each in request.amounts},
            )
        )

    async def TransferPoints(
        self, request: pb.TransferPointsRequest, context: Context
    ) -> pb.TransferPointsResponse:
        """See the contract."""
        common = messages.asked("TransferPoints", request)
        sent = await self._post(Send(**common, to_member_id=request.to_member_id, amount=request.amount))
        return pb.TransferPointsResponse(transaction=sent, state=pb.TRANSFER_STATE_IN_TRANSIT)

    async def AdjustPoints(self, request: pb.AdjustPointsRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        return await self._post(messages.adjustment(request))

    async def BatchPost(self, request: pb.BatchPostRequest, context: Context) -> pb.BatchPostResponse:
        """See the contract."""
        futures = [self._submit_item(item) for item in request.items]
        answers = await asyncio.gather(*futures, return_exceptions=True)
        return pb.BatchPostResponse(results=[messages.post_result(answer) for answer in answers])

    async def _submit_item(self, item: pb.BatchPostItem) -> Transaction:
        earn = item.WhichOneof("command") == "earn"
        message = item.earn if earn else item.adjust
        authorise(CALLER.get(), METHODS[EARN if earn else ADJUST], message.member_id)
        return await self._submit(messages.earning(item.earn) if earn else messages.adjustment(item.adjust))

    async def _post(self, command: Command) -> pb.Transaction:
        return events.transaction(await self._submit(command))

    async def _submit(self, command: Command) -> Transaction:
        answer = await self._batches.posts.submit(command)
        assert isinstance(answer, Transaction)  # noqa: S101 - only events and sweeps may find nothing to do
        return answer

    # --- reads ----------------------------------------------------------------------------------------

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.Balance:
        """See the contract."""
        member = await self._batches.balances.submit(request.member_id)
        if member is None:
            raise MemberUnknown(member_id=request.member_id)
        return messages.balance(member)

    async def BatchGetBalances(
        self, request: pb.BatchGetBalancesRequest, context: Context
    ) -> pb.BatchGetBalancesResponse:
        """See the contract."""
        async with self._database.read() as connection:
            members = await service.balances(
                connection, request.member_ids, self._programmes, self._clock.now()
            )
        return pb.BatchGetBalancesResponse(balances=[messages.balance(m) for m in members if m is not None])

    async def QuoteEarn(self, request: pb.QuoteEarnRequest, context: Context) -> pb.QuoteEarnResponse:
        """See the contract."""
        source = messages.source(request)
        async with self._database.read() as connection:
            programme, gains = await service.quote(
                connection,
                request.member_id,
                source,
                self._programmes,
                occur_time=instant_of(request, "occur_time"),
                may_backdate=CALLER.get().has(ADMIN),
                at=self._clock.now(),
            )
        return pb.QuoteEarnResponse(
            points=sum(g.amount for g in gains if g.unit is Unit.POINTS),
            growth=sum(g.amount for g in gains if g.unit is Unit.GROWTH),
            contributions=[
                pb.Contribution(rule_id=g.rule_id, unit=events.UNITS[g.unit], amount=g.amount, error=g.error)
                for g in gains
            ],
            programme_version=programme.version,
        )

    async def GetTransaction(self, request: pb.GetTransactionRequest, context: Context) -> pb.Transaction:
        """See the contract."""
        async with self._database.read() as connection:
            found = await store.find_transaction(
                connection, request.member_id, number_of(request.transaction_id)
            )
        if found is None or found.transaction_id != request.transaction_id:
            raise TransactionUnknown(transaction_id=request.transaction_id)
        return events.transaction(found)

    async def GetHold(self, request: pb.GetHoldRequest, context: Context) -> pb.Hold:
        """See the contract."""
        async with self._database.read() as connection:
            found = await store.find_hold(connection, request.member_id, number_of(request.hold_id))
        if found is None or found.hold_id != request.hold_id:
            raise HoldUnknown(hold_id=request.hold_id)
        if found.state is HoldState.PLACED and found.expire_time <= self._clock.now():
            found.state = HoldState.EXPIRED
        return events.hold(request.member_id, found)

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, context: Context
    ) -> pb.ListTransactionsResponse:
        """See the contract."""
        chosen = store.Filter(
            kinds=[pb.TransactionKind.Name(k).removeprefix("TRANSACTION_KIND_") for k in request.kinds]
            or None,
            unit=messages.UNITS[request.unit].value if request.unit else None,
            order=request.order_id or None,
            since=instant_of(request, "occur_from_time"),
            until=instant_of(request, "occur_until_time"),
        )
        found, token = await self._page(request, chosen, messages.transaction)
        return pb.ListTransactionsResponse(transactions=found, next_page_token=token)

    async def ExportMember(
        self, request: pb.ExportMemberRequest, context: Context
    ) -> pb.ExportMemberResponse:
        """See the contract."""
        found, token = await self._page(request, store.Filter(), messages.exported)
        now = self._clock.now()
        async with self._database.read() as connection:
            known = await service.known(connection, [request.member_id], self._programmes, now)
            holds = await store.open_holds(connection, request.member_id, EXPORTED_HOLDS)
        member = known.get(request.member_id)
        if member is None:
            raise MemberUnknown(member_id=request.member_id)
        return pb.ExportMemberResponse(
            balance=messages.balance(member),
            transactions=found,
            next_page_token=token,
            holds=[events.hold(request.member_id, held) for held in holds if held.expire_time > now],
            facts=member.told(now, now),
        )

    async def _page(
        self,
        request: pb.ListTransactionsRequest | pb.ExportMemberRequest,
        chosen: store.Filter,
        make: Callable[[Row], Shown],
    ) -> tuple[list[Shown], str]:
        question = pagination.question(request)
        before = pagination.read_token(question, request.page_token)
        size = pagination.page_size(request.page_size)
        async with self._database.read() as connection:
            rows = await store.page(connection, request.member_id, chosen, before, size + 1)
        return pagination.fill(question, rows, size, "seq", make)

    # --- the programme, and erasing -------------------------------------------------------------------

    async def PutProgramme(self, request: pb.PutProgrammeRequest, context: Context) -> pb.Programme:
        """See the contract."""
        rules.compile_programme(request.programme)

        async def work(connection: Connection, now: datetime) -> pb.Programme:
            return await putting.put_programme(connection, now, request.programme, CALLER.get().subject)

        return await self._operators.answer(
            "PutProgramme", request, pb.Programme, work, check=request.validate_only
        )

    async def GetProgramme(self, request: pb.GetProgrammeRequest, context: Context) -> pb.Programme:
        """See the contract."""
        async with self._database.read() as connection:
            version = request.version or await store.head_version(connection, self._clock.now())
            row = await store.programme(connection, version) if version else None
        if row is None:
            raise ProgrammeUnknown(version=request.version)
        return messages.programme(row)

    async def ListProgrammes(
        self, request: pb.ListProgrammesRequest, context: Context
    ) -> pb.ListProgrammesResponse:
        """See the contract."""
        question = pagination.question(request)
        before = pagination.read_token(question, request.page_token)
        size = pagination.page_size(request.page_size)
        async with self._database.read() as connection:
            rows = await store.programme_page(connection, before, size + 1)
        programmes, token = pagination.fill(question, rows, size, "version", messages.programme)
        return pb.ListProgrammesResponse(programmes=programmes, next_page_token=token)

    async def EraseMember(self, request: pb.EraseMemberRequest, context: Context) -> pb.EraseMemberResponse:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.EraseMemberResponse:
            notes, sources, announced = await service.erase(connection, request.member_id, now)
            return pb.EraseMemberResponse(
                erase_time=timestamp(now), notes=notes, sources=sources, events=announced
            )

        return await self._operators.answer(
            "EraseMember", request, pb.EraseMemberResponse, work, scope=request.member_id
        )


class BrandApi(OrdersServiceServicer, ActivitiesServiceServicer):
    """loyalty.orders.v1.OrdersService and loyalty.activities.v1.ActivitiesService."""

    def __init__(self, database: Database, batches: Batches) -> None:
        self._database = database
        self._batches = batches

    async def ReportOrderPaid(
        self, request: orders_pb.ReportOrderPaidRequest, context: Context
    ) -> orders_pb.ReportOrderPaidResponse:
        """See the contract."""
        rules.read_order(request.order)
        message = OrderPaid(member_id=request.member_id, order=request.order)
        event = events.order_paid(message, TRACEPARENT.get())
        event_id = await self._announce("ReportOrderPaid", request, event)
        return orders_pb.ReportOrderPaidResponse(event_id=event_id)

    async def ReportOrderRefunded(
        self, request: orders_pb.ReportOrderRefundedRequest, context: Context
    ) -> orders_pb.ReportOrderRefundedResponse:
        """See the contract."""
        message = OrderRefunded(member_id=request.member_id, refund=request.refund)
        event = events.order_refunded(message, TRACEPARENT.get())
        event_id = await self._announce("ReportOrderRefunded", request, event)
        return orders_pb.ReportOrderRefundedResponse(event_id=event_id)

    async def ReportActivity(
        self, request: activities_pb.ReportActivityRequest, context: Context
    ) -> activities_pb.ReportActivityResponse:
        """See the contract."""
        message = ActivityReported(member_id=request.member_id, activity=request.activity)
        event_id = await self._announce(
            "ReportActivity", request, events.activity_reported(message, TRACEPARENT.get())
        )
        return activities_pb.ReportActivityResponse(event_id=event_id)

    async def _announce(
        self,
        method: str,
        request: orders_pb.ReportOrderPaidRequest
        | orders_pb.ReportOrderRefundedRequest
        | activities_pb.ReportActivityRequest,
        event: Event,
    ) -> str:
        payload = payload_hash(method, request)

        async def work() -> str:
            async with self._database.begin() as connection:
                scope = request.member_id
                first = await store.REQUESTS.find(connection, scope, request.request_id, payload)
                if first is not None:
                    return first.decode()
                await store.OUTBOX.add(connection, [event])
                await store.REQUESTS.keep(
                    connection, scope, request.request_id, payload, answer=event.event_id.encode(), at=wall()
                )
                return event.event_id

        event_id = await shielded(work)
        self._batches.wake()
        return event_id
