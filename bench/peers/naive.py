"""The receiver that people write first: FastAPI, a pydantic model, SQLAlchemy's ORM, a commit for every request."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import DateTime

engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=20)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The tables."""

    type_annotation_map = {dict[str, Any]: JSONB, datetime: DateTime(timezone=True)}  # noqa: RUF012 - as SQLAlchemy has it


class Delivery(Base):
    """One callback as it came."""

    __tablename__ = "deliveries"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    received_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
    event: Mapped[str]
    body: Mapped[dict[str, Any]]


class Product(Base):
    """The latest state of a product."""

    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[dict[str, Any]]
    updated_at: Mapped[datetime]


class Callback(BaseModel):
    """What comes."""

    event: str
    data: dict[str, Any]


class Receipt(BaseModel):
    """What is answered."""

    status: str
    delivery_id: UUID


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Make the tables."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


async def get_session() -> AsyncIterator[AsyncSession]:
    """A session for each request."""
    async with sessions() as session:
        yield session


app = FastAPI(lifespan=lifespan)


@app.post("/callbacks/products")
async def receive(
    callback: Callback,
    session: Annotated[AsyncSession, Depends(get_session)],
    x_signing_secret: Annotated[str, Header()],
) -> Receipt:
    """Check the secret, keep the delivery, keep the latest state, commit."""
    if not secrets.compare_digest(x_signing_secret, os.environ["SIGNING_SECRET"]):
        raise HTTPException(401)
    delivery = Delivery(event=callback.event, body=callback.model_dump())
    session.add(delivery)
    latest = {"data": callback.data, "updated_at": datetime.now(UTC)}
    await session.execute(
        insert(Product)
        .values(id=callback.data["id"], **latest)
        .on_conflict_do_update(index_elements=[Product.id], set_=latest)
    )
    await session.commit()
    return Receipt(status="accepted", delivery_id=delivery.id)
