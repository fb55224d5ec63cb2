"""The child of upload.py: sends a folder to a hub through huggingface_hub, and says line by line how far it is.

Run as a script by its whole path. It reads one JSON object on its stdin, the token among it, so that the token is in no
argument and no variable. It answers with lines of JSON: progress, then one with `done` or `fault`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CHUNK_FILES = 20
"""Files between two reports of progress."""
NUM_THREADS = 4
TIMEOUT_SECONDS = 120.0


class Refused(Exception):
    """Why nothing was published, for the person."""


def main() -> int:
    """Reads the order, does it, returns the exit code."""
    order: dict[str, Any] = json.load(sys.stdin)
    from huggingface_hub import HfApi

    _guard_connections(order["endpoint"])
    api = HfApi(endpoint=order["endpoint"], token=order["token"], library_name="safelight")
    try:
        _say(done=_publish(api, order))
    except (Refused, OSError, ValueError, RuntimeError, _connection_fault()) as error:
        _say(**_told(error))
    return 0


def _told(error: BaseException) -> dict[str, Any]:
    """A fault as upload.py reads it. A fault of one file is wrapped by the library; what lies below it says more."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(below)
    for one in chain:
        if isinstance(one, Refused):
            return {"fault": str(one), "refused": True}
        if isinstance(one, HfHubHTTPError):
            status = one.response.status_code if one.response is not None else 0
            return {"fault": str(one.server_message or one)[:500], "status": status}
    return {"fault": f"{type(chain[-1]).__name__}: {chain[-1]}"[:500], "status": 0}


def _publish(api: HfApi, order: dict[str, Any]) -> dict[str, str]:
    """Makes the repository if it is new, sends the large files, then commits all files at once. Returns page and commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
    from huggingface_hub.errors import RepositoryNotFoundError

    repo, folder = order["repo"], Path(order["folder"])
    try:
        there = api.dataset_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, repo_type="dataset", private=order["private"])
        there = api.dataset_info(repo)
    else:
        if not order["replace"]:
            raise Refused(
                f"There is a dataset {repo} already. Choose another name, or agree to put a new version on it."
            )
        if bool(there.private) != order["private"]:
            was, asked = ("private", "public") if there.private else ("public", "private")
            raise Refused(f"{repo} is {was} and you asked for {asked}. Change that on its page, or ask for {was} here.")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    additions = [CommitOperationAdd(name, folder / name) for name in names]
    for start in range(0, len(additions), CHUNK_FILES):
        _say(sent=start, total=len(additions))
        chunk = additions[start : start + CHUNK_FILES]
        api.preupload_lfs_files(repo, chunk, repo_type="dataset", num_threads=NUM_THREADS, free_memory=False)
    _say(sent=len(additions), total=len(additions))
    kept = {*names, ".gitattributes"}
    old = [sibling.rfilename for sibling in there.siblings or [] if sibling.rfilename not in kept]
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *additions,
        *(CommitOperationDelete(name) for name in old),
    ]
    # A parent commit: what somebody else put there meanwhile is not undone silently.
    commit = api.create_commit(
        repo, operations, commit_message=order["message"], repo_type="dataset", parent_commit=there.sha,
        num_threads=NUM_THREADS,
    )  # fmt: skip
    return {"page": f"{order['endpoint']}/datasets/{repo}", "commit": commit.oid}


def _guard_connections(endpoint: str) -> None:
    """The token goes to the hub alone, and nothing leaves unencrypted, wherever the hub's answers point."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    home = urlsplit(endpoint)

    def check(request: Any) -> None:
        check_request(request, home.scheme, home.netloc)

    def client() -> Any:
        usual = _http.default_client_factory()
        usual.event_hooks = {"request": [check, *usual.event_hooks["request"]]}
        usual.follow_redirects = False
        usual.timeout = TIMEOUT_SECONDS
        return usual

    set_client_factory(client)


def check_request(request: Any, scheme: str, host: str) -> None:
    """Takes the token out of a request that goes elsewhere than to the hub (`host` with its port).

    Raises Refused for one that would go there unencrypted.
    """
    if (request.url.scheme, request.url.netloc.decode()) == (scheme, host):
        return
    if request.url.scheme != "https":
        raise Refused(f"The hub wants the files at {request.url.host} without encryption. Nothing more is sent.")
    request.headers.pop("authorization", None)


def _connection_fault() -> type[Exception]:
    """What the HTTP library of huggingface_hub raises when a connection fails, whichever library that is."""
    from huggingface_hub.utils import _http

    fault: type[Exception] = vars(_http)["httpx2"].HTTPError
    return fault


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
