"""The panel "Publish": a dataset on Hugging Face, with a card, private unless the person says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from security.policy import Service
from security.secrets import Secret
from security.token_rights import TOKENS_PAGE
from security.upload import upload_endpoint
from trainer.dataset.publish import LICENCES, PublishOptions, publish_dataset
from trainer.tasks import TaskControl
from ui.messages import ShownError, text_of
from ui.services import Services
from ui.studio.asked import dataset_of
from ui.studio.panels import Answer, Panel

LANE = "network"
"""Its own lane: a slow line must hold up no import."""
SERVICE = Service.HUGGING_FACE


def _functions(services: Services) -> Sequence[Answer]:
    def publish_form(_argument: Any = None) -> dict[str, Any]:
        """What the form offers, and which token would be used without a typed one."""
        state = services.tokens.state(SERVICE)
        who = f"{state.source}{f', of {state.user}' if state.user else ''}" if state.source else ""
        return {
            "licences": [list(entry) for entry in LICENCES.items()],
            "token": who,
            "user": state.user,
            "tokens_page": f"https://{TOKENS_PAGE}",
        }

    def publish(argument: Any = None) -> dict[str, Any]:
        """Starts to publish. The typed token is used for this alone and kept nowhere."""
        dataset = dataset_of(services, argument)
        options = PublishOptions(
            repo=text_of(argument, "repo").strip(),
            private=argument.get("private") is not False,
            replace=argument.get("replace") is True,
            licence=_optional(argument, "licence"),
            description=_optional(argument, "description"),
        )
        endpoint = upload_endpoint(services.network)
        typed = _optional(argument, "token").strip()
        token = Secret(typed, "token for publishing") if typed else services.tokens.get(SERVICE)
        if token is None:
            raise ShownError(
                f"Publishing needs a token that may write. Make one at {TOKENS_PAGE} with write access to this dataset and "
                "paste it; it is used once and not kept."
            )

        def work(control: TaskControl) -> str:
            return publish_dataset(services.studio, dataset, options, token, endpoint, control)

        title = f"Publishing as {options.repo}"
        return {"task": services.studio.tasks.start("publish", title, dataset.name, work, lane=LANE)}

    return [publish_form, publish]


def _optional(argument: Any, key: str) -> str:
    """A text that may be missing. Its length is checked by what takes it."""
    value = argument.get(key) if isinstance(argument, dict) else None
    return value if isinstance(value, str) else ""


PUBLISH_PANEL = Panel("publish", _functions)
