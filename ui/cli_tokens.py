"""`tokens`: where the hubs' tokens come from, and on request what the hubs say of them. No part of a token is shown."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from security.errors import SafelightError
from security.net import Network
from security.policy import Service
from security.tokens import TokenStore
from ui.cli_lists import print_table


def list_tokens(store: TokenStore, network: Network | None, *, as_json: bool) -> int:
    """Prints every place that is looked at; with a `network` also asks each hub. Returns 1 if a token is no good."""
    facts = [_facts(store, service, network) for service in Service]
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        _print(facts)
    return 1 if any(fact["problem"] for fact in facts) else 0


def _facts(store: TokenStore, service: Service, network: Network | None) -> dict[str, Any]:
    state, sources = store.state(service), store.sources(service)
    problem = next((source.note for source in sources if source.used), "")
    if network is not None and not problem:
        try:
            state = store.check(service, network)
            problem = state.warning if state.source and not state.user else ""
        except SafelightError as error:
            problem = str(error)
    return {
        "service": service.value,
        **asdict(state),
        "problem": problem,
        "sources": [asdict(source) for source in sources],
    }


def _print(facts: list[dict[str, Any]]) -> None:
    rows = [("SERVICE", "PLACE", "TOKEN", "")]
    for fact in facts:
        for place in fact["sources"]:
            word = "used" if place["used"] else "there, not used" if place["found"] else "none"
            rows.append((fact["service"], place["source"], word, place["note"]))
    print_table(rows)
    for fact in facts:
        if fact["user"]:
            print(f"{fact['service']}: {fact['user']}, {fact['role']}")
        for text in dict.fromkeys((fact["problem"], fact["warning"])):
            if text:
                print(f"{fact['service']}: {text}")
