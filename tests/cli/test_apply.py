"""Files of `loyalty apply`: what is read of them, and where the line of a fault is."""

from __future__ import annotations

from pathlib import Path

import pytest
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cli.apply import Draft, Faulty, Reader, difference, located

COFFEE = """\
cards:
  products:
    - code: coffee
      names: {zh-CN: 咖啡卡, en: Coffee card}
      withdrawn: true
      points_price: 990
      period: P1M
      benefits:
        - benefit_code: cup
          kind: BENEFIT_KIND_FIXED_PRICE
          scope: &any true
          dayparts:
            - {start: "05:00", end: 10:30, weekdays: [1, 2]}
          quota: {limit: 1, window: QUOTA_WINDOW_DAY}
    - code: king
      benefits:
        - {benefit_code: free, after_other: no, parts: [{scope: *any, quantity: 2}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "programme.yaml"


def drafts(file: Path, text: str) -> dict[str, list[Draft]]:
    file.write_text(text, encoding="utf-8")
    return Reader(file).drafts()


def faults(file: Path, text: str) -> list[tuple[int, str, str]]:
    """Line, field and message of each fault."""
    with pytest.raises(Faulty) as refusal:
        drafts(file, text)
    return [(fault.line, fault.field, fault.message) for fault in refusal.value.faults]


def test_products_are_read_with_their_names_lists_and_truths(file: Path) -> None:
    coffee, king = drafts(file, COFFEE.replace("after_other: no", "after_other: false"))["cards"]
    assert (coffee.name, king.name) == ("cards/coffee", "cards/king")
    product = coffee.said
    assert product.withdrawn
    assert dict(product.names) == {"zh-CN": "咖啡卡", "en": "Coffee card"}
    (cup,) = product.benefits
    assert (cup.scope, cup.quota.window) == ("true", pb.QUOTA_WINDOW_DAY)
    assert [(part.start, part.end, *part.weekdays) for part in cup.dayparts] == [("05:00", "10:30", 1, 2)]
    assert king.said.benefits[0].parts[0].scope == "true"


def test_a_part_that_is_not_in_the_file_is_not_read(file: Path) -> None:
    assert drafts(file, "points: {currency_code: CNY}").keys() == {"points"}
    assert drafts(file, "cards: {products: []}") == {"cards": []}


def test_what_is_true_or_false_is_read_in_a_programme_too(file: Path) -> None:
    (draft,) = drafts(file, "points: {tier_ladder: {calendar_year: true}}")["points"]
    assert draft.said.tier_ladder.calendar_year


@pytest.mark.parametrize(
    ("text", "line", "field", "message"),
    [
        (COFFEE, 17, "products[1].benefits[0].after_other", "true or false"),
        (COFFEE.replace("points_price: 990", "points: 990"), 6, "products[0].points", "no such field"),
        (COFFEE.replace("period: P1M", "code: cup"), 7, "products[0].code", "is given twice"),
        (COFFEE.replace("code: king", "code: coffee"), 15, "products[1].code", "coffee is listed twice"),
        (COFFEE.replace("points_price: 990", "points_price: many"), 6, "products[0].points_price", "many"),
        (COFFEE.replace("[1, 2]", "1"), 13, "products[0].benefits[0].dayparts[0].weekdays", "must be in []"),
        (COFFEE.replace("{zh-CN: 咖啡卡, en: Coffee card}", "Coffee"), 4, "products[0].names", "in a dict"),
        (
            COFFEE.replace("{limit: 1, window: QUOTA_WINDOW_DAY}", "1"),
            14,
            "products[0].benefits[0].quota",
            "",
        ),
        ("points: {}\ncards:\n  product: []\n", 3, "product", "known: products"),
        ("cards: 5\n", 1, "products", "must be a list"),
        ("cards:\n  products:\n    - king\n", 3, "products[0]", "must be a mapping"),
        ("points:\n  earn_rules: {}\n", 2, "earn_rules", "must be a list"),
        ("vouchers: {}\n", 1, "vouchers", "known: points, cards, groups"),
        ("- points\n", 1, "", "one of the keys points, cards, groups"),
    ],
)
def test_a_fault_is_told_with_its_line_and_field(
    file: Path, text: str, line: int, field: str, message: str
) -> None:
    found = faults(file, text)
    assert (line, field) in [(at, where) for at, where, _ in found]
    assert any(message in said for _, where, said in found if where == field)


def test_the_faults_of_all_parts_are_told_at_once(file: Path) -> None:
    found = faults(file, COFFEE + "points:\n  currency: CNY\n")
    assert [(line, field) for line, field, _ in found] == [
        (17, "products[1].benefits[0].after_other"),
        (19, "currency"),
    ]


@pytest.mark.parametrize(
    ("path", "line", "field"),
    [
        ("product.benefits[0].scope", 11, "products[0].benefits[0].scope"),
        ("product.benefits[0].dayparts[0].end", 13, "products[0].benefits[0].dayparts[0].end"),
        ('product.names["en"]', 4, 'products[0].names["en"]'),
        ("product.currency_code", 3, "products[0].currency_code"),
        ("product", 3, "products[0]"),
    ],
)
def test_what_the_service_finds_wrong_is_told_with_its_line(
    file: Path, path: str, line: int, field: str
) -> None:
    coffee, _ = drafts(file, COFFEE.replace("after_other: no", "after_other: false"))["cards"]
    fault = located(coffee, file, path, "is wrong")
    assert (fault.line, fault.field) == (line, field)


def named(**names: str) -> pb.Product:
    return pb.Product(code="coffee", version=3, names=names, price_minor=990)


def test_a_difference_shows_what_is_said_otherwise_and_nothing_else() -> None:
    before = named(en="Coffee", zh="咖啡", de="Kaffee")
    after = named(de="Kaffee", zh="咖啡", en="Coffee")
    after.ClearField("version")
    assert difference("cards/coffee", before, after) == ""
    after.price_minor = 1090
    shown = difference("cards/coffee", before, after).splitlines()
    assert shown[:2] == ["--- cards/coffee, version 3", "+++ cards/coffee in the file"]
    assert [line for line in shown[3:] if line[0] in "+-"] == ["-price_minor: 990", "+price_minor: 1090"]
    assert difference("cards/coffee", pb.Product(), after).startswith("--- nothing\n")
