"""Columns and checks as the tables of every service have them.

Texts that are not there are empty; everything else that is not there is null.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TIMESTAMP

INSTANT = TIMESTAMP(timezone=True)


def schema() -> sa.MetaData:
    """A service's tables, whose indexes and keys have names."""
    return sa.MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s",
            "pk": "%(table_name)s_key",
            "uq": "%(table_name)s_%(column_0_N_name)s_once",
        }
    )


def member_key() -> tuple[sa.Column[int], sa.Column[str]]:
    """What the key of a member's row begins with."""
    return (
        sa.Column("bucket", sa.SmallInteger, primary_key=True),
        sa.Column("member_id", sa.Text, primary_key=True),
    )


def key(name: str) -> sa.Column[str]:
    """A name in a key."""
    return sa.Column(name, sa.Text, primary_key=True)


def numbered(name: str) -> sa.Column[int]:
    """A number in a key."""
    return sa.Column(name, sa.BigInteger, primary_key=True, autoincrement=False)


def text(name: str) -> sa.Column[str]:
    """A text."""
    return sa.Column(name, sa.Text, nullable=False)


def number(name: str) -> sa.Column[int]:
    """A number, or an amount."""
    return sa.Column(name, sa.BigInteger, nullable=False)


def flag(name: str) -> sa.Column[bool]:
    """Whether something holds."""
    return sa.Column(name, sa.Boolean, nullable=False)


def instant(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    """An instant."""
    return sa.Column(name, INSTANT, nullable=nullable)


def one_of(table: str, column: str, *values: str) -> sa.CheckConstraint:
    """A column has one of these values."""
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=f"{table}_{column}")


def not_negative(table: str, *columns: str) -> sa.CheckConstraint:
    """None of these columns is below 0."""
    condition = " AND ".join(f"{column} >= 0" for column in columns)
    return sa.CheckConstraint(condition, name=f"{table}_not_negative")
