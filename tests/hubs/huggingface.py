"""Plays Hugging Face on the loopback server: model info, files and where they lie, as the real hub answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.hubs.models import git_sha1, sha256
from tests.hubs.server import Hubs, Reply, Seen, json_reply, redirect

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOST, STORAGE = "huggingface.co", "cdn-lfs.hf.co"
SIGNATURE = "Expires=1&Signature=SIGNED&Key-Pair-Id=K"


class HuggingFacePlayer:
    """One repository of a hub. `storage` is where large files are sent from; None lets the hub send them itself.

    `kind`: "models" or "datasets", which stand below another path.
    """

    def __init__(
        self,
        hubs: Hubs,
        repo: str,
        files: Mapping[str, bytes],
        *,
        host: str = HOST,
        storage: str | None = STORAGE,
        kind: str = "models",
    ):
        self.kind = kind
        self.hubs = hubs
        self.repo = repo
        self.files = dict(files)
        self.host = host
        self.storage = storage
        self.commit = COMMIT
        self.token = ""
        self.info: dict[str, Any] = {
            "id": repo,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": ["license:openrail++"],
            "cardData": {"license": "openrail++"},
            "securityRepoStatus": {"scansDone": True, "filesWithIssues": []},
        }
        self.changes: dict[str, dict[str, Any]] = {}
        self.replies: dict[str, dict[str, Any]] = {}

    def is_large(self, path: str) -> bool:
        """Whether the file is stored apart from git, as weights are."""
        pictures = (
            (".png", ".jpg", ".webp") if self.kind == "datasets" else ()
        )  # as the hub's own .gitattributes has it
        return path.endswith((".safetensors", ".ckpt", ".bin", ".onnx", ".parquet", ".zip", *pictures))

    def issue(self, path: str, level: str) -> None:
        """The scanners found something."""
        self.info["securityRepoStatus"]["filesWithIssues"].append({"path": path, "level": level})

    def publish(self, revisions: Sequence[str] = ("main", COMMIT)) -> HuggingFacePlayer:
        """Puts everything on the server."""
        for revision in revisions:
            self.hubs.on(self.host, f"/api/{self.kind}/{self.repo}/revision/{revision}", self._info)
        for path, data in self.files.items():
            self._publish_file(path, data)
        return self

    def _publish_file(self, path: str, data: bytes) -> None:
        more = self.replies.get(path, {})
        body = Reply(**{"body": data, "etag": f'"{sha256(data)}"', **more})
        prefix = "" if self.kind == "models" else f"/{self.kind}"
        address = f"{prefix}/{self.repo}/resolve/{self.commit}/{path}"
        headers = [("X-Repo-Commit", self.commit)]
        if not self.is_large(path) or self.storage is None:
            self.hubs.on(self.host, address, self._guarded(body))
            return
        headers += [("X-Linked-Etag", f'"{sha256(data)}"'), ("X-Linked-Size", str(len(data)))]
        stored = f"/repos/{sha256(data)}"
        self.hubs.on(self.host, address, self._guarded(redirect(f"https://{self.storage}{stored}?{SIGNATURE}", 302)))
        self.hubs.on(self.storage, stored, lambda seen: body if "Signature" in seen.query else Reply(403))

    def _info(self, seen: Seen) -> Reply:
        refused = self._refusal(seen, is_info=True)
        if refused is not None:
            return refused
        siblings = []
        for path, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
            if self.is_large(path):
                entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
            siblings.append({**entry, **self.changes.get(path, {})})
        wants = seen.query.split("&")
        answer = {**self.info, "siblings": siblings if "blobs=true" in wants else []}
        if "securityStatus=true" not in wants:
            answer.pop("securityRepoStatus", None)
        return json_reply(answer)

    def _guarded(self, reply: Reply) -> Any:
        return lambda seen: self._refusal(seen, is_info=False) or reply

    def _refusal(self, seen: Seen, *, is_info: bool) -> Reply | None:
        if self.token and seen.token == f"Bearer {self.token}":
            return None
        if self.info["private"]:
            return json_reply({"error": "Repository not found"}, 401, [("X-Error-Code", "RepoNotFound")])
        if self.info["gated"] and not is_info:
            return json_reply({"error": "Access to model is restricted"}, 403, [("X-Error-Code", "GatedRepo")])
        return None
