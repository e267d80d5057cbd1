"""Settings, read from environment variables that begin with `MAILGLASS_`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mailglass_reconcile.errors import ConfigurationError, WrongUsageError
from mailglass_reconcile.rules.humanize import find_closest

ENV_PREFIX = "MAILGLASS_"
MIN_TOKEN_CHARACTERS = 16


def _infinity_is_none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "infinity" else value


def _mapping_to_json(value: object) -> object:
    """Return a mapping as JSON, with null in place of what is none, which no secret is."""
    if not isinstance(value, Mapping):
        return value
    return json.dumps(value, default=lambda _: None) if value else ""


_WRONG_USAGE = "wrong_usage"


def _wrong_usage(sentence: str) -> PydanticCustomError:
    return PydanticCustomError(_WRONG_USAGE, "{sentence}", {"sentence": sentence})


def _validate_schema_name(value: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_]+", value):
        raise _wrong_usage("use a schema whose name has only letters, digits and underscores")
    return value


def read_secret_file(path: str) -> str:
    """Return the text of a file whose path a setting gives as `@FILE`.

    Raises:
        ConfigurationError: It cannot be read, or is empty; the message does not quote the path.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigurationError(f"cannot read its file: {reason}") from None
    if not text.strip():
        raise ConfigurationError("its file is empty")
    return text


def _read_at_file(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    if not value.startswith("@"):
        return secret
    try:
        text = read_secret_file(value.removeprefix("@")).strip()
    except ConfigurationError as error:
        raise PydanticCustomError("file", "{sentence}", {"sentence": str(error)}) from None
    if text.startswith("@"):
        raise PydanticCustomError("file", "its value must not begin with @, which names a file")
    return SecretStr(text)


Secret = Annotated[SecretStr, AfterValidator(_read_at_file)]
"""A secret value, or `@FILE`: the path of a file that contains it."""
WebhookSecrets = Annotated[
    SecretStr,
    BeforeValidator(_mapping_to_json),
]
"""Pairs as text, `@FILE`, or a mapping of providers to secrets, which is JSON from here on: settings are hashable."""
RetentionDays = Annotated[int | None, Field(ge=0, le=36_500), BeforeValidator(_infinity_is_none)]
"""Days, or `infinity` (None in Python): nothing is deleted."""
SilenceHours = Annotated[float | None, Field(gt=0, le=8_760, allow_inf_nan=False), BeforeValidator(_infinity_is_none)]
"""Hours, or `infinity` (None in Python): nothing is reported."""


class Settings(BaseSettings):
    """One installation's settings; each is also an environment variable, `MAILGLASS_` and its name in capitals.

    `database_url`, `redis_url`, `web_token` and `webhook_url` may be `@FILE`: the path of a file that holds the value.

    Attributes:
        database_url: The database: `postgresql+psycopg://user:password@host:5432/name`. `postgresql://` and `postgres://`
            mean the same here. SQLAlchemy's `create_engine` needs the first form, psql one of the others.
        database_schema: The schema of the tables: letters, digits and underscores. With Mailglass since 2.0 it is
            `mailglass`.
        tenant: The tenant (`docs/tenants.md`) of sends and webhooks that are recorded without one.
        redis_url: Redis for broadcasts and the lock of Celery's sweeps. The bundled Celery app also stores its results
            there, and its queues unless `CELERY_BROKER_URL` names another broker.
        imports: Modules to import in every process, separated by commas: your handlers (`docs/handlers.md`), key rules
            and readers (`docs/own-provider.md`). If one is missing, commands that only read print a warning and
            continue.
        web_token: The dashboard's token, at least 16 characters. If it is not set, `serve` makes one and prints it.
            With it, `receive` serves `/metrics` (`docs/monitoring.md#receivers`).
        web_secure_cookie: `true`: browsers send the dashboard's cookie over HTTPS only. Set it behind a proxy that ends
            TLS.
        webhook_secrets: `provider=secret` pairs, separated by commas, or `@` and the path of a file with one pair on
            each line. Each provider has its kind of secret (`docs/providers.md`), or `user:password`. A provider may be
            named several times while you rotate a secret. In Python, also a mapping of providers to secrets.
        webhook_url: The public URL of the webhooks, without the provider's name. Mandrill signs it
            (`docs/providers.md#mandrill`), and `trigger` posts to it.
        grace_seconds: Age in seconds from which the full sweep checks an open event.
        max_age_minutes: Age in minutes from which no sweep checks an open event any more (7 days).
        batch_size: The most events that one transaction links. The default holds locks for about 100 ms.
        sweep_seconds: A sweep's deadline in seconds. The next sweep continues.
        silence_hours: Hours after which a delivery without a webhook event, and a provider without webhooks, are
            reported (`docs/doctor.md#reports`). `infinity` turns this off, such as for webhooks that report bounces
            only.
        retention_succeeded_days: Days before finished jobs of handlers, and succeeded raw webhooks, are deleted.
            `infinity` keeps them. Mailglass's raw webhooks are deleted only if you set this.
        retention_dead_days: The same for dead jobs, and dead raw webhooks.
        retention_failed_days: The same for failed raw webhooks.
        retention_events_days: Days before events are deleted, on tables that `migrate` made
            (`docs/personal-data.md#retention`). At least a day more than `MAILGLASS_MAX_AGE_MINUTES`.
        retention_deliveries_days: Days before deliveries without events are deleted. It needs
            `MAILGLASS_RETENTION_EVENTS_DAYS`, and must not be smaller.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    database_url: Secret | None = None
    database_schema: Annotated[str, AfterValidator(_validate_schema_name)] = Field(
        default="public", min_length=1, max_length=63
    )
    tenant: str = Field(default="default", min_length=1, max_length=512)
    redis_url: Secret = SecretStr("redis://localhost:6379/0")
    imports: str = ""
    web_token: Secret | None = None
    web_secure_cookie: bool = False
    webhook_secrets: WebhookSecrets | None = None
    webhook_url: Secret | None = None
    grace_seconds: int = Field(default=60, ge=0, le=86_400)
    max_age_minutes: int = Field(default=10_080, ge=1, le=525_600)
    batch_size: int = Field(default=2_000, ge=1, le=100_000)
    sweep_seconds: float = Field(default=240, gt=0, le=86_400)
    silence_hours: SilenceHours = 24
    retention_succeeded_days: RetentionDays = 14
    retention_dead_days: RetentionDays = 90
    retention_failed_days: RetentionDays = None
    retention_events_days: RetentionDays = None
    retention_deliveries_days: RetentionDays = None

    @field_validator("retention_events_days")
    @classmethod
    def _exceeds_max_age(cls, days: int | None, validated: ValidationInfo) -> int | None:
        minimum = 1 + -(-validated.data.get("max_age_minutes", 0) // 1_440)
        if days is not None and days < minimum:
            raise _wrong_usage(
                f"must be `infinity` or at least {minimum} days (one more than MAILGLASS_MAX_AGE_MINUTES)"
            )
        return days

    @field_validator("retention_deliveries_days")
    @classmethod
    def _covers_retention_of_events(cls, days: int | None, validated: ValidationInfo) -> int | None:
        if days is None or "retention_events_days" not in validated.data:  # that setting has an error of its own
            return days
        events_days: int | None = validated.data["retention_events_days"]
        if events_days is None:
            raise _wrong_usage("set MAILGLASS_RETENTION_EVENTS_DAYS too: a delivery is deleted after its events")
        if days < events_days:
            raise _wrong_usage(
                f"must be `infinity` or at least the {events_days} days of MAILGLASS_RETENTION_EVENTS_DAYS"
            )
        return days

    def __init__(self, **values: Any) -> None:
        """Read the environment; *values* passed by name take precedence.

        Raises:
            ConfigurationError: A value is invalid; the message names each such setting, never its value.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            is_wrong_usage = any(detail["type"] == _WRONG_USAGE for detail in error.errors(include_context=False))
            raise (WrongUsageError if is_wrong_usage else ConfigurationError)(_format_errors(error)) from None


VARIABLES = {ENV_PREFIX + field.upper(): field for field in Settings.model_fields}
"""The field of each environment variable."""


def find_closest_variable(name: str, *others: str) -> str | None:
    """Return the variable, or another name, that is most similar to an unknown *name*; None if none is similar."""
    return find_closest(name, [*VARIABLES, *others], cutoff=0.75)


def load_web_token(settings: Settings) -> str | None:
    """Return the token of the dashboard and of `/metrics`, or None if none is set.

    Raises:
        ConfigurationError: It is too short.
    """
    if settings.web_token is None:
        return None
    token = settings.web_token.get_secret_value().strip()
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigurationError(
            f"MAILGLASS_WEB_TOKEN: use at least {MIN_TOKEN_CHARACTERS} characters; `openssl rand -hex 24` prints"
            " a token"
        )
    return token


def _format_errors(error: ValidationError) -> str:
    return "; ".join(
        f"{ENV_PREFIX}{str(detail['loc'][0]).upper()}: {_sentence(detail['msg'])}"
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    )


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]
