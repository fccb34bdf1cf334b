"""The tables of auth. Portable types only; times are Unix seconds, so that SQLite and PostgreSQL keep the same value."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Account(Base):
    """One set of credentials. `active` is false until users has the account too; until then it cannot log in.

    `claim` and `claimed_until` say which registration is opening it: a second one waits its turn (409), and takes over
    what a dead one left behind.
    """

    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(String(254), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    scopes: Mapped[str] = mapped_column(String(100), default="user")
    active: Mapped[bool] = mapped_column(Boolean, default=False)
    claim: Mapped[str] = mapped_column(String(32), default="")
    claimed_until: Mapped[float] = mapped_column(Float, default=0.0)
    created_at: Mapped[float] = mapped_column(Float)


class TallyRow(Base):
    """Failures under one key (see `services.auth.lockout`). The key is a hash: no mistyped address is kept."""

    __tablename__ = "login_tallies"

    key: Mapped[str] = mapped_column(String(66), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    last_at: Mapped[float] = mapped_column(Float, default=0.0)
    known_until: Mapped[float] = mapped_column(Float, default=0.0)

    __table_args__ = (Index("ix_login_tallies_last_at", "last_at"),)


class RefreshFamily(Base):
    """All refresh tokens that descend from one login. Revoking it ends every one of them."""

    __tablename__ = "refresh_families"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[float] = mapped_column(Float, index=True)
    revoked_at: Mapped[float | None] = mapped_column(Float)
    revoked_for: Mapped[str | None] = mapped_column(String(20))
    rotations: Mapped[int] = mapped_column(Integer, default=0)


class RefreshToken(Base):
    """One refresh token, by its SHA-256. `used_at` is set once, by the one caller that may exchange it."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    family_id: Mapped[str] = mapped_column(ForeignKey("refresh_families.id", ondelete="CASCADE"), index=True)
    used_at: Mapped[float | None] = mapped_column(Float)


class ApiKey(Base):
    """One API key, by its SHA-256. `prefix` is what its owner may see of it, and what finds it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class Revocation(Base):
    """What was issued to `subject` at `before` or earlier is void. From `until` on its access tokens have expired anyway.

    No foreign key: most of these accounts are gone.
    """

    __tablename__ = "revocations"

    subject: Mapped[str] = mapped_column(String(64), primary_key=True)
    before: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[int] = mapped_column(BigInteger, index=True)


class SigningKey(Base):
    """One RSA key. `generation` is unique: of two instances that make the next key at once, one wins and both use it."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(String(43), primary_key=True)
    generation: Mapped[int] = mapped_column(Integer, unique=True)
    active_from: Mapped[float] = mapped_column(Float)
    private_encrypted: Mapped[str] = mapped_column(Text)
    public_jwk: Mapped[str] = mapped_column(Text)
