"""What others tell of a member: orders, refunds and facts, in any order and as often as they like."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from functools import partial

from services.chassis.errors import FailedPrecondition
from services.groups import assigning, choosing, events, seating, tagging
from services.groups.commands import LearnFact, OrderTold, RefundTold
from services.groups.domain.profile import Basis, KeptOrder, Profile
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.domain.seats import Group, SeriesName
from services.groups.domain.sites import Site
from services.groups.steps import Again, Scene, Step, together

FRESH = timedelta(days=1)  # later than that after it was paid, an order is no occasion to offer anything


def order_told(step: Step, command: OrderTold) -> None:
    """Keeps a paid order, and offers an entry after it. Raises Again."""
    kept = step.profile.orders.get(command.order_id) or KeptOrder(order_id=command.order_id)
    if kept.paid_time is not None:
        return
    told = replace(
        kept,
        store_id=command.store_id,
        city=command.city,
        paid_time=command.paid_time,
        amount_minor=command.amount_minor,
    )
    step.keep(told)
    profile = step.profile
    if told.purchase is not None and profile.past.holds(told.purchase):
        profile.past = profile.past.add([told.purchase])
    tagging.evaluate(step)
    _offer(step, command)


def refund_told(step: Step, command: RefundTold) -> None:
    """Keeps a refund, which counts from when its order is told. Raises Again."""
    kept = step.profile.orders.get(command.order_id) or KeptOrder(order_id=command.order_id)
    if command.refund_id in kept.refunds:
        return
    refunded = replace(kept, refunds={**kept.refunds, command.refund_id: command.amount_minor})
    step.keep(refunded)
    if kept.purchase is not None and step.profile.past.holds(kept.purchase):
        _refunded_late(step.profile, kept, refunded)
    tagging.evaluate(step)


def _refunded_late(profile: Profile, kept: KeptOrder, refunded: KeptOrder) -> None:
    """Adds the past up anew, where a purchase of it counts no longer. Raises Again."""
    was, now = kept.purchase, refunded.purchase
    if was is None or now is None or was.counts == now.counts:
        return
    if not profile.whole:  # it was told in this batch
        raise Again(facts=True)
    profile.past = profile.past.anew(profile.purchases())


def learn(step: Step, command: LearnFact) -> None:
    """Notes what another service told, unless something newer is known. Raises Again."""
    profile, name = step.profile, command.name
    if command.version <= profile.fact_versions.get(name, (0, 0)):
        return
    profile.fact_versions = {**profile.fact_versions, name: command.version}
    if command.value == profile.facts.get(name, ""):
        return
    others = {other: value for other, value in profile.facts.items() if other != name}
    profile.facts = {**others, name: command.value} if command.value else others
    tagging.evaluate(step)


# --- an entry, offered --------------------------------------------------------------------------------


def _offer(step: Step, command: OrderTold) -> None:
    """Offers groups around the store of an order, one of each scheme that the member may enter."""
    site = _offered_at(step.scene, step.profile, command)
    if site is None:
        return
    entries = (partial(_entry, step, scheme, site) for scheme in assigning.for_all(step.scene))
    groups = [group for group in together(entries) if group is not None]
    if groups:
        step.profile.offer_time = step.at
        scene = f"offer-{hashlib.sha256(command.order_id.encode()).hexdigest()[:26]}"
        offer = events.Offer(order_id=command.order_id, store_id=site.site_id, groups=groups, scene=scene)
        step.announce(events.entry_offered, offer)


def _offered_at(scene: Scene, profile: Profile, command: OrderTold) -> Site | None:
    """The store at which an order is an occasion to offer something."""
    programme = scene.programme.programme
    resting = profile.offer_time is not None and scene.at < profile.offer_time + programme.offer_cooldown
    if resting or programme.opt_out_key in profile.tags or scene.at - command.paid_time > FRESH:
        return None
    return scene.atlas.site(command.store_id)


def around(scene: Scene, profile: Profile, command: OrderTold) -> list[SeriesName]:
    """The series that may be offered after an order: of these it helps to know which have a seat."""
    site = _offered_at(scene, profile, command)
    if site is None:
        return []
    schemes = (scheme for scheme in assigning.for_all(scene) if _enters(profile, scheme))
    return [
        option.series
        for scheme in schemes
        for option in choosing.near(scene, scheme, site.point, Basis.HOME_SITE)
    ]


def _enters(profile: Profile, scheme: Scheme) -> bool:
    """Whether a scheme goes by places, and the member is in no group of it."""
    return scheme.kind is SchemeKind.BY_LOCATION and profile.active(scheme.scheme_id) is None


def _entry(step: Step, scheme: Scheme, site: Site) -> Group | None:
    """The group of a scheme that a member at a site may enter. Raises Again."""
    if not _enters(step.profile, scheme) or not assigning.is_for(step.scene, scheme, step.profile):
        return None
    try:
        assigning.check(step, scheme)
    except FailedPrecondition:
        return None
    for series in choosing.to_lock(
        step.scene, choosing.near(step.scene, scheme, site.point, Basis.HOME_SITE)
    ):
        # What was seen without a lock will do; a lock is for a group that has to be opened.
        room = step.scene.rooms.get(series)
        locked = room is None or series in step.scene.seen.series or room.over(step.at)
        group = seating.find(step, series) if locked else room
        if group is not None:
            return group
    return None
