"""What every table shares: ids, times, and one convention for the names of constraints."""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import uuid_utils.compat
from sqlalchemy import DateTime, Enum, MetaData, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

# Every constraint has a name that follows from its columns, so that a migration can speak of it.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The declared schema; the migrations are checked against it."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: DateTime(timezone=True),
        uuid.UUID: Uuid(),
        dict[str, Any]: JSONB(),
        list[Any]: JSONB(),
    }


def new_id() -> uuid.UUID:
    """A UUIDv7: ordered by time, safe to show outside."""
    return uuid_utils.compat.uuid7()


def words(kind: type[StrEnum], name: str) -> Enum:
    """A closed set of words as text with a CHECK named after the column, readable in any dump."""
    return Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        name=name,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


Id = Annotated[uuid.UUID, mapped_column(primary_key=True, default=new_id)]
Created = Annotated[datetime, mapped_column(server_default=func.clock_timestamp())]
