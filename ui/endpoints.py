"""Where models are fetched from: the hubs themselves, or mirrors that the command line names. Variables decide nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass

from security.net import Network
from security.policy import HOST_RULES, Service

HF_VARIABLE = "HF_ENDPOINT"


@dataclass(frozen=True)
class Endpoints:
    """Addresses of mirrors, None for the hub itself. Tokens go to a mirror only if the user says so."""

    hugging_face: str | None = None
    civitai: str | None = None
    send_tokens: bool = False

    def network(self) -> Network:
        """The door to these addresses. Raises RefusedUrl for one that is no good."""
        named = {Service.HUGGING_FACE: self.hugging_face, Service.CIVITAI: self.civitai}
        mirrors = {service: address for service, address in named.items() if address}
        return Network(mirrors=mirrors, send_tokens_to_mirrors=self.send_tokens)

    def fault(self, environment: Mapping[str, str]) -> str:
        """Why nothing may be fetched, empty when all is well: a variable names another hub, and no flag does.

        Other tools send the user's token to whatever that variable names.
        """
        named = environment.get(HF_VARIABLE, "").strip()
        own = {f"https://{host}" for host in HOST_RULES[Service.HUGGING_FACE].typed}
        if not named or named.rstrip("/").lower() in own or self.hugging_face:
            return ""
        shown = re.sub(r"//[^/]*@", "//", re.split("[?#]", named)[0])[:120]
        return (
            f"{HF_VARIABLE} is set to {shown!r} in the environment, and models are not fetched from a server because a "
            f"variable says so. If you want it as a mirror, start with --hf-endpoint {shown}; else remove the variable."
        )


def add_endpoint_options(parser: argparse.ArgumentParser, *, is_command: bool) -> None:
    """The flags. A command has no defaults of its own: they would hide what was given before the command."""
    absent = argparse.SUPPRESS if is_command else None
    group = parser.add_argument_group("mirrors")
    group.add_argument(
        "--hf-endpoint",
        metavar="URL",
        default=absent,
        help="fetch from this mirror of Hugging Face (https, or loopback)",
    )
    group.add_argument(
        "--civitai-endpoint",
        metavar="URL",
        default=absent,
        help="fetch from this mirror of Civitai (https, or loopback)",
    )
    group.add_argument(
        "--send-tokens-to-mirror",
        action="store_true",
        default=argparse.SUPPRESS if is_command else False,
        help="send your tokens to the mirrors too; without it they go to the hubs only",
    )


def endpoints_of(options: argparse.Namespace) -> Endpoints:
    """What the command line says."""
    return Endpoints(options.hf_endpoint, options.civitai_endpoint, options.send_tokens_to_mirror)
