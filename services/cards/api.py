"""The gRPC edge: who may call what, and one transaction per call or gathered batch."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceServicer

from services.cards import codes, messages, putting, rules, selling, service, store, wechat
from services.cards.batches import Batches, Visit
from services.cards.channels import PayChannel
from services.cards.codes import Guesses
from services.cards.commands import (
    TIER,
    ActivateGift,
    CancelAutoRenew,
    CancelOrder,
    Command,
    ConfirmPayment,
    ConfirmUses,
    FreezeCard,
    GiftOrder,
    PlaceOrder,
    RecordNotice,
    RecordRefundPaid,
    Redeem,
    RefundCard,
    ResumeCard,
    ReverseUses,
    SetAutoRenew,
)
from services.cards.domain.payments import Payment
from services.cards.domain.wallet import KeptCard
from services.cards.errors import (
    CardOrderUnknown,
    CardUnknown,
    GiftCodeUnknown,
    MemberUnknown,
    PaymentAlreadyTold,
    ProductUnknown,
)
from services.cards.messages import SERVICE
from services.cards.rules import Products
from services.cards.steps import Terms
from services.chassis import pagination
from services.chassis.asked import by_caller
from services.chassis.auth import CALLER, Access, MemberAccess
from services.chassis.clock import Clock, wall
from services.chassis.database import Connection, Database
from services.chassis.errors import RequestIdReused
from services.chassis.requests import Operators
from services.chassis.timestamps import instant, instant_of, timestamp

Context = grpc.aio.ServicerContext[Any, Any]

Answer = TypeVar("Answer", bound=Message)

EXPORTED = 1_000  # cards, uses, and payments of no order, in an export

READ, WRITE, ADMIN = "cards.read", "cards.write", "cards.admin"
_OWN, _ACT = MemberAccess.READ, MemberAccess.ACT

# Who may call what. A member token reads its own, and decides about its own cards; what was paid, signed or
# used is told by the brand alone.
METHODS = {
    f"{SERVICE}ListProducts": Access(READ),
    f"{SERVICE}GetProduct": Access(READ),
    f"{SERVICE}PutProduct": Access(ADMIN),
    f"{SERVICE}PlaceOrder": Access(WRITE, _ACT),
    f"{SERVICE}GetOrder": Access(READ, _OWN),
    f"{SERVICE}ConfirmPayment": Access(WRITE),
    f"{SERVICE}RecordRefundPaid": Access(WRITE),
    f"{SERVICE}CancelOrder": Access(WRITE, _ACT),
    f"{SERVICE}QuoteRefund": Access(READ, _OWN),
    f"{SERVICE}RefundCard": Access(WRITE, _ACT),
    f"{SERVICE}FreezeCard": Access(WRITE, _ACT),
    f"{SERVICE}ResumeCard": Access(WRITE, _ACT),
    f"{SERVICE}GiftCard": Access(WRITE, _ACT),
    f"{SERVICE}ActivateGift": Access(WRITE, _ACT),
    f"{SERVICE}ListMemberCards": Access(READ, _OWN),
    f"{SERVICE}GetCard": Access(READ, _OWN),
    f"{SERVICE}CheckEntitlements": Access(READ, _OWN),
    f"{SERVICE}QuoteOrder": Access(READ, _OWN),
    f"{SERVICE}RedeemBenefits": Access(WRITE),
    f"{SERVICE}ConfirmRedemptions": Access(WRITE),
    f"{SERVICE}ReverseRedemptions": Access(WRITE),
    f"{SERVICE}SetAutoRenew": Access(WRITE),
    f"{SERVICE}RecordRenewalNotice": Access(WRITE),
    f"{SERVICE}CancelAutoRenew": Access(WRITE, _ACT),
    f"{SERVICE}GetSavings": Access(READ, _OWN),
    f"{SERVICE}VerifyWechatPayNotification": Access(WRITE),
    f"{SERVICE}ExportMember": Access(ADMIN),
    f"{SERVICE}EraseMember": Access(ADMIN),
}


class CardsApi(CardsServiceServicer):
    """loyalty.cards.v1.CardsService."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        products: Products,
        terms: Terms,
        batches: Batches,
        *,
        wechat_pay: PayChannel,
    ) -> None:
        self._database = database
        self._clock = clock
        self._products = products
        self._terms = terms
        self._batches = batches
        self._wechat_pay = wechat_pay
        self._guesses = Guesses()
        self._operators = Operators(database, clock, store.REQUESTS, SERVICE, batches.wake)

    # --- the catalogue --------------------------------------------------------------------------------

    async def ListProducts(
        self, request: pb.ListProductsRequest, context: Context
    ) -> pb.ListProductsResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size = pagination.page_size(request.page_size)
        async with self._database.read() as connection:
            rows = await store.product_page(
                connection, request.family or None, request.include_withdrawn, after, size + 1
            )
        products, token = pagination.fill(question, rows, size, "code", messages.product)
        return pb.ListProductsResponse(products=products, next_page_token=token)

    async def GetProduct(self, request: pb.GetProductRequest, context: Context) -> pb.Product:
        """See the contract."""
        async with self._database.read() as connection:
            row = await store.product(connection, request.code, request.version or None)
        if row is None:
            raise ProductUnknown(code=request.code)
        return messages.product(row)

    async def PutProduct(self, request: pb.PutProductRequest, context: Context) -> pb.Product:
        """See the contract."""
        rules.compile_product(request.product)

        async def work(connection: Connection, now: datetime) -> pb.Product:
            return await putting.put_product(connection, now, request.product, CALLER.get().subject)

        return await self._operators.answer(
            "PutProduct", request, pb.Product, work, check=request.validate_only
        )

    # --- buying ---------------------------------------------------------------------------------------

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, context: Context) -> pb.CardOrder:
        """See the contract."""
        return await self._write(
            pb.CardOrder,
            PlaceOrder(
                **messages.asked("PlaceOrder", request),
                product_code=request.product_code,
                by_points=request.pay_with == pb.PAY_WITH_POINTS,
                upgrade_now=request.upgrade == pb.UPGRADE_NOW,
            ),
        )

    async def GetOrder(self, request: pb.GetOrderRequest, context: Context) -> pb.CardOrder:
        """See the contract."""
        async with self._database.read() as connection:
            kept = await store.order(connection, request.member_id, request.order_id)
        if kept is None:
            raise CardOrderUnknown(order_id=request.order_id)
        return messages.card_order(request.member_id, kept, self._clock.now())

    async def ConfirmPayment(
        self, request: pb.ConfirmPaymentRequest, context: Context
    ) -> pb.ConfirmPaymentResponse:
        """See the contract."""
        return await self._write(
            pb.ConfirmPaymentResponse,
            ConfirmPayment(
                **messages.asked("ConfirmPayment", request),
                order_id=request.order_id,
                channel=request.channel,
                payment_id=request.payment_id,
                payment=Payment(request.amount_minor, request.currency_code, instant(request.paid_time)),
            ),
        )

    async def VerifyWechatPayNotification(
        self, request: pb.VerifyWechatPayNotificationRequest, context: Context
    ) -> pb.ConfirmPaymentResponse:
        """See the contract."""
        headers = {
            wechat.SIGNATURE: request.signature,
            wechat.SERIAL: request.serial,
            wechat.TIMESTAMP: request.timestamp,
            wechat.NONCE: request.nonce,
        }
        paid = self._wechat_pay.read(headers, request.body, wall())
        async with self._database.read() as connection:
            member_id = await store.member_of_order(connection, paid.order_id)
        if member_id is None:
            raise CardOrderUnknown(order_id=paid.order_id)
        command = ConfirmPayment(
            member_id=member_id,
            request_id="",
            payload_hash=b"",
            **by_caller(),
            order_id=paid.order_id,
            channel=paid.channel,
            payment_id=paid.payment_id,
            payment=Payment(paid.amount_minor, paid.currency_code, paid.paid_time),
        )
        # Nobody made a request_id: the payment's own name tells a repeat.
        command = replace(
            command, request_id=selling.own_name(command), payload_hash=selling.body_hash(command)
        )
        try:
            return await self._write(pb.ConfirmPaymentResponse, command)
        except RequestIdReused:
            raise PaymentAlreadyTold(channel=paid.channel, payment_id=paid.payment_id) from None

    async def RecordRefundPaid(
        self, request: pb.RecordRefundPaidRequest, context: Context
    ) -> pb.RecordRefundPaidResponse:
        """See the contract."""
        return await self._write(
            pb.RecordRefundPaidResponse,
            RecordRefundPaid(
                **messages.asked("RecordRefundPaid", request),
                channel=request.channel,
                payment_id=request.payment_id,
                refund_id=request.refund_id,
                amount_minor=request.amount_minor,
                currency_code=request.currency_code,
                refund_time=instant(request.refund_time),
            ),
        )

    async def CancelOrder(self, request: pb.CancelOrderRequest, context: Context) -> pb.CardOrder:
        """See the contract."""
        command = CancelOrder(**messages.asked("CancelOrder", request), order_id=request.order_id)
        return await self._write(pb.CardOrder, command)

    async def GiftCard(self, request: pb.GiftCardRequest, context: Context) -> pb.GiftCardResponse:
        """See the contract."""
        answer = await self._write(
            pb.GiftCardResponse,
            GiftOrder(
                **messages.asked("GiftCard", request),
                product_code=request.product_code,
                by_points=request.pay_with == pb.PAY_WITH_POINTS,
            ),
        )
        order_id = answer.order.order_id
        code = codes.make(self._terms.gift_code_key, order_id)
        async with self._database.read() as connection:
            kept = await store.code_hash(connection, order_id)
        # A repeat may come after the key was changed, or after the member was erased: then nobody knows it.
        if codes.hash_of(code) == kept:
            answer.claim_code = code
        return answer

    async def ActivateGift(self, request: pb.ActivateGiftRequest, context: Context) -> pb.Card:
        """See the contract."""
        code_hash = codes.hash_of(request.claim_code)
        command = ActivateGift(**messages.asked("ActivateGift", request), code_hash=code_hash)
        guesser = (command.actor, command.member_id)
        self._guesses.check(guesser, time.monotonic())
        try:
            return await self._write(pb.Card, command)
        except GiftCodeUnknown:
            self._guesses.wrong(guesser, time.monotonic())
            raise

    # --- a card ---------------------------------------------------------------------------------------

    async def ListMemberCards(
        self, request: pb.ListMemberCardsRequest, context: Context
    ) -> pb.ListMemberCardsResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size, now = pagination.page_size(request.page_size), self._clock.now()
        async with self._database.read() as connection:
            rows = await store.card_page(connection, request.member_id, now, after, size + 1)
        cards, token = pagination.fill(
            question,
            rows,
            size,
            "family",
            lambda row: messages.card(request.member_id, store.to_whole_card(row), now, self._terms.zone),
        )
        return pb.ListMemberCardsResponse(cards=cards, next_page_token=token)

    async def GetCard(self, request: pb.GetCardRequest, context: Context) -> pb.Card:
        """See the contract."""
        now = self._clock.now()
        async with self._database.read() as connection:
            kept = await _card(connection, request, now)
        return messages.card(request.member_id, kept, now, self._terms.zone)

    async def GetSavings(self, request: pb.GetSavingsRequest, context: Context) -> pb.Savings:
        """See the contract."""
        now = self._clock.now()
        async with self._database.read() as connection:
            kept = await _card(connection, request, now)
            found = await store.savings(connection, request.member_id, request.card_id, now)
        return messages.savings(kept, found)

    async def QuoteRefund(self, request: pb.QuoteRefundRequest, context: Context) -> pb.RefundQuote:
        """See the contract."""
        async with self._database.read() as connection:
            kept, quote = await service.quote_refund(
                connection,
                request.member_id,
                request.card_id,
                self._products,
                self._terms,
                at=self._clock.now(),
            )
        return messages.refund_quote(quote, kept.currency_code)

    async def RefundCard(self, request: pb.RefundCardRequest, context: Context) -> pb.RefundCardResponse:
        """See the contract."""
        return await self._write(
            pb.RefundCardResponse,
            RefundCard(
                **messages.asked("RefundCard", request),
                card_id=request.card_id,
                expected_minor=request.expected_refund_minor,
                expected_points=request.expected_refund_points,
            ),
        )

    async def FreezeCard(self, request: pb.FreezeCardRequest, context: Context) -> pb.Card:
        """See the contract."""
        command = FreezeCard(
            **messages.asked("FreezeCard", request), card_id=request.card_id, days=request.days
        )
        return await self._write(pb.Card, command)

    async def ResumeCard(self, request: pb.ResumeCardRequest, context: Context) -> pb.Card:
        """See the contract."""
        command = ResumeCard(**messages.asked("ResumeCard", request), card_id=request.card_id)
        return await self._write(pb.Card, command)

    # --- benefits -------------------------------------------------------------------------------------

    async def CheckEntitlements(
        self, request: pb.CheckEntitlementsRequest, context: Context
    ) -> pb.CheckEntitlementsResponse:
        """See the contract."""
        visit = Visit(request.member_id, request.store_id, request.channel, instant_of(request, "at_time"))
        return messages.entitlements(await self._batches.entitlements.submit(visit))

    async def QuoteOrder(self, request: pb.QuoteOrderRequest, context: Context) -> pb.Quote:
        """See the contract."""
        bill = rules.read_order(request.order)
        price = await self._batches.price(request.member_id, bill, instant_of(request, "at_time"))
        return messages.quote(price.quote, bill.currency_code)

    async def RedeemBenefits(
        self, request: pb.RedeemBenefitsRequest, context: Context
    ) -> pb.RedeemBenefitsResponse:
        """See the contract."""
        return await self._write(
            pb.RedeemBenefitsResponse,
            Redeem(
                **messages.asked("RedeemBenefits", request),
                bill=rules.read_order(request.order),
                expected_saved_minor=request.expected_saved_minor,
            ),
        )

    async def ConfirmRedemptions(
        self, request: pb.ConfirmRedemptionsRequest, context: Context
    ) -> pb.ConfirmRedemptionsResponse:
        """See the contract."""
        command = ConfirmUses(**messages.asked("ConfirmRedemptions", request), order_id=request.order_id)
        return await self._write(pb.ConfirmRedemptionsResponse, command)

    async def ReverseRedemptions(
        self, request: pb.ReverseRedemptionsRequest, context: Context
    ) -> pb.ReverseRedemptionsResponse:
        """See the contract."""
        command = ReverseUses(**messages.asked("ReverseRedemptions", request), order_id=request.order_id)
        return await self._write(pb.ReverseRedemptionsResponse, command)

    # --- renewing -------------------------------------------------------------------------------------

    async def SetAutoRenew(self, request: pb.SetAutoRenewRequest, context: Context) -> pb.Renewal:
        """See the contract."""
        return await self._write(
            pb.Renewal,
            SetAutoRenew(
                **messages.asked("SetAutoRenew", request),
                card_id=request.card_id,
                product_code=request.product_code,
                contract_id=request.contract_id,
                sign_time=instant(request.sign_time),
            ),
        )

    async def RecordRenewalNotice(
        self, request: pb.RecordRenewalNoticeRequest, context: Context
    ) -> pb.Renewal:
        """See the contract."""
        return await self._write(
            pb.Renewal,
            RecordNotice(
                **messages.asked("RecordRenewalNotice", request),
                renewal_id=request.renewal_id,
                notice_time=instant(request.notice_time),
                amount_minor=request.amount_minor,
                medium=request.medium,
            ),
        )

    async def CancelAutoRenew(
        self, request: pb.CancelAutoRenewRequest, context: Context
    ) -> pb.CancelAutoRenewResponse:
        """See the contract."""
        command = CancelAutoRenew(**messages.asked("CancelAutoRenew", request), card_id=request.card_id)
        return await self._write(pb.CancelAutoRenewResponse, command)

    async def _write(self, answer: type[Answer], command: Command) -> Answer:
        body = await self._batches.post(command)
        assert isinstance(body, bytes)  # noqa: S101 - only events and sweeps are answered with nothing
        return answer.FromString(body)

    # --- a member's data ------------------------------------------------------------------------------

    async def ExportMember(
        self, request: pb.ExportMemberRequest, context: Context
    ) -> pb.ExportMemberResponse:
        """See the contract."""
        question = pagination.question(request)
        before = pagination.read_name(question, request.page_token)
        size, now, member_id = pagination.page_size(request.page_size), self._clock.now(), request.member_id
        async with self._database.read() as connection:
            wallet = await store.member(connection, member_id)
            if wallet is None:
                raise MemberUnknown(member_id=member_id)
            rows = await store.order_page(connection, member_id, before, size + 1)
            orders, token = pagination.fill(
                question,
                rows,
                size,
                "order_id",
                lambda row: messages.card_order(member_id, store.to_order(row), now),
            )
            payments = await store.payments_of(connection, member_id, [order.order_id for order in orders])
            answer = pb.ExportMemberResponse(
                orders=orders,
                payments=map(messages.payment, payments),
                facts={**wallet.facts, **({TIER: wallet.tier} if wallet.tier else {})},
                next_page_token=token,
            )
            if before is None:
                await self._export_first(connection, member_id, now, answer)
        return answer

    async def _export_first(
        self, connection: Connection, member_id: str, now: datetime, answer: pb.ExportMemberResponse
    ) -> None:
        """Adds what the first page has beside orders."""
        cards = await store.card_page(connection, member_id, now, None, EXPORTED)
        answer.cards.extend(
            messages.card(member_id, store.to_whole_card(row), now, self._terms.zone) for row in cards
        )
        astray = await store.payments_astray(connection, member_id, EXPORTED)
        answer.payments.extend(map(messages.payment, astray))
        uses = await store.redemption_page(connection, member_id, None, EXPORTED)
        answer.redemptions.extend(messages.redemption(store.to_use(row), now) for row in uses)
        for kept in await store.open_renewals(connection, member_id):
            if now < kept.renewal.charge_until:
                answer.renewals.append(messages.renewal(kept, now, self._terms.zone))

    async def EraseMember(self, request: pb.EraseMemberRequest, context: Context) -> pb.EraseMemberResponse:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.EraseMemberResponse:
            erased = await service.erase(connection, request.member_id, self._terms, now)
            return pb.EraseMemberResponse(
                erase_time=timestamp(now),
                baskets=erased.baskets,
                facts=erased.facts,
                events=erased.events,
            )

        return await self._operators.answer(
            "EraseMember", request, pb.EraseMemberResponse, work, scope=request.member_id
        )


async def _card(
    connection: Connection, request: pb.GetCardRequest | pb.GetSavingsRequest, now: datetime
) -> KeptCard:
    kept = await store.card(connection, request.member_id, request.card_id, now)
    if kept is None:
        raise CardUnknown(card_id=request.card_id)
    return kept
