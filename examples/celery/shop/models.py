"""The shop's own table; its Alembic makes it, in `migrations/`."""

import os

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = sa.create_engine(os.environ["MAILGLASS_DATABASE_URL"], hide_parameters=True)


class Base(DeclarativeBase):
    """The tables that `alembic revision --autogenerate` compares."""


class Suppressed(Base):
    """An address that gets no more mail."""

    __tablename__ = "suppressed"

    address: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
