"""How Alembic runs; everything is in the chassis."""

from alembic import context

from services.chassis.migrations import configure

configure(context)
