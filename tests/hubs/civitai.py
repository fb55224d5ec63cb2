"""Plays Civitai on the loopback server: the two API answers, the download address and the presigned storage behind it."""

from __future__ import annotations

import itertools
from typing import Any

from tests.hubs.models import sha256
from tests.hubs.server import Hubs, Reply, Seen, json_reply, redirect

HOST = "civitai.com"
STORAGE = "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com"


class CivitaiPlayer:
    """One version of one model with its files."""

    def __init__(self, hubs: Hubs, model_id: int = 257749, version_id: int = 290640, *, host: str = HOST) -> None:
        self.hubs = hubs
        self.model_id = model_id
        self.version_id = version_id
        self.host = host
        self.token = ""
        self.signatures = itertools.count(1)
        self.last_signature = ""
        self.version: dict[str, Any] = {
            "id": version_id,
            "modelId": model_id,
            "name": "v6",
            "baseModel": "Pony",
            "status": "Published",
            "availability": "Public",
            "usageControl": "Download",
            "model": {"name": "Tiny Pony", "type": "Checkpoint", "nsfw": False},
            "files": [],
            "downloadUrl": f"//{host}/api/download/models/{version_id}",
        }
        self.model: dict[str, Any] = {
            "id": model_id,
            "name": "Tiny Pony",
            "type": "Checkpoint",
            "allowNoCredit": False,
            "allowCommercialUse": ["Image", "RentCivit"],
            "allowDerivatives": True,
            "allowDifferentLicense": False,
            "modelVersions": [{"id": version_id, "name": "v6", "status": "Published"}],
        }
        self.bodies: dict[int, bytes] = {}
        self.replies: dict[int, dict[str, Any]] = {}

    def add(self, name: str, data: bytes, *, file_id: int = 0, primary: bool = True, **changes: Any) -> int:
        """A file of the version. Returns its number."""
        file_id = file_id or 1000 + len(self.bodies)
        self.bodies[file_id] = data
        entry = {
            "id": file_id,
            "name": name,
            "type": "Model",
            "sizeKB": len(data) / 1024,
            "primary": primary,
            "metadata": {"format": "SafeTensor" if name.endswith(".safetensors") else "PickleTensor", "fp": "fp16"},
            "pickleScanResult": "Success",
            "virusScanResult": "Success",
            "hashes": {"SHA256": sha256(data).upper(), "AutoV2": sha256(data)[:10].upper()},
            "downloadUrl": f"//{self.host}/api/download/models/{self.version_id}",
        }
        self.version["files"].append({**entry, **changes})
        return file_id

    def publish(self) -> CivitaiPlayer:
        """Puts everything on the server."""
        self.hubs.on(self.host, f"/api/v1/model-versions/{self.version_id}", self._api(lambda: self.version))
        self.hubs.on(self.host, f"/api/v1/models/{self.model_id}", self._api(lambda: self.model))
        self.hubs.on(self.host, f"/api/download/models/{self.version_id}", self._download)
        for file_id in self.bodies:
            self.hubs.on(STORAGE, f"/model/{file_id}", lambda seen, one=file_id: self._stored(seen, one))
        return self

    def _api(self, value: Any) -> Any:
        return lambda _: json_reply(value())

    def _download(self, seen: Seen) -> Reply:
        if self.token and seen.token != f"Bearer {self.token}":
            return json_reply({"error": "Unauthorized", "message": "The creator requires you to be logged in"}, 401)
        wanted = dict(pair.split("=") for pair in seen.query.split("&") if "=" in pair).get("fileId")
        file_id = int(wanted) if wanted else next(iter(self.bodies))
        if file_id not in self.bodies:
            return json_reply({"error": "File not found"}, 404)
        self.last_signature = f"S{next(self.signatures)}"
        return redirect(
            f"https://{STORAGE}/model/{file_id}?X-Amz-Expires=60&X-Amz-Signature={self.last_signature}", 307
        )

    def _stored(self, seen: Seen, file_id: int) -> Reply:
        """Presigned storage: it refuses any Authorization header, and signatures that are no longer the last."""
        if seen.token is not None:
            return Reply(400, b"InvalidArgument: Only one auth mechanism allowed")
        if f"X-Amz-Signature={self.last_signature}" not in seen.query:
            return Reply(403, b"Request has expired")
        data = self.bodies[file_id]
        return Reply(**{"body": data, "etag": f'"{sha256(data)[:32]}"', **self.replies.get(file_id, {})})
