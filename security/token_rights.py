"""What a hub says that a token may do, and what to say about a token that may do too much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from security.policy import Service
from security.redaction import redact, visible

MAX_SHOWN = 100
"""Longest user name or role that is shown, in characters."""
EXPIRES_SOON = timedelta(days=7)
TOKENS_PAGE = "huggingface.co/settings/tokens"
_WAY_OUT = f"Make one of type Read, or fine-grained with read access to the models you need, at {TOKENS_PAGE}."


@dataclass(frozen=True, slots=True)
class Rights:
    """Whose token it is and what it may do, in words. `refused`: it is not to be stored."""

    user: str = ""
    role: str = ""
    warning: str = ""
    refused: bool = False


def rights_of(service: Service, answer: Any) -> Rights:
    """The rights out of a hub's answer. Everything in it may be missing or of another type."""
    facts = answer if isinstance(answer, dict) else {}
    if service is Service.CIVITAI:
        return Rights(_shown(facts.get("username")) or "unknown", "API key")
    user = _shown(facts.get("name")) or "unknown"
    auth = _dict(facts.get("auth"))
    token = _dict(auth.get("accessToken"))
    role = _shown(token.get("role")) or _shown(auth.get("type")) or "unknown"
    warnings = []
    refused = False
    if role == "write":
        refused = True
        warnings.append(f"This token can change and delete what is in your account; reading is enough. {_WAY_OUT}")
    elif role == "fineGrained":
        more = sorted(set(_more_than_reading(_dict(token.get("fineGrained")))))
        refused = any(permission.startswith(("repo.", "org.")) for permission in more)
        if more:
            shown = ", ".join(more[:5]) + (" ..." if len(more) > 5 else "")
            warnings.append(f"This token can do more than read: {shown}. {_WAY_OUT}")
    elif role != "read":
        warnings.append(f"Its rights are not known (role {role}). {_WAY_OUT}")
    if expiry := _expiry(token.get("expiresAt")):
        left = expiry - datetime.now(UTC)
        if left < EXPIRES_SOON:
            warnings.append(f"It expires on {expiry:%Y-%m-%d}. Make a new one at {TOKENS_PAGE}.")
    return Rights(user, role, " ".join(warnings), refused)


def _more_than_reading(fine_grained: dict[str, Any]) -> Iterator[str]:
    """Permissions of a fine-grained token that are no reading: global ones and those of single repositories."""
    lists = [fine_grained.get("global")]
    scoped = fine_grained.get("scoped")
    lists += [_dict(scope).get("permissions") for scope in scoped] if isinstance(scoped, list) else []
    for permissions in lists:
        for permission in permissions if isinstance(permissions, list) else []:
            if not str(permission).endswith(".read"):
                yield _shown(permission)


def _expiry(value: Any) -> datetime | None:
    try:
        expiry = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return expiry.replace(tzinfo=UTC) if expiry and expiry.tzinfo is None else expiry


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    """A text of the hub, cut to MAX_SHOWN and without control characters; "" for anything else."""
    return redact(visible(value))[:MAX_SHOWN] if isinstance(value, str) else ""
