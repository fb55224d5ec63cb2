"""Files that a browser sends in pieces: put together rightly, for one login only, nothing outside of the staging folder."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from security import uploads, web
from security.errors import RefusedRequest
from security.login import Credentials
from security.uploads import Upload, Uploads
from security.web import Door, DoorSettings
from tests.security.conftest import PASSWORD
from tests.ui.conftest import make_services
from ui.services import Services
from ui.studio.importing import UPLOAD_PATH, upload_route, uploads_of

SUFFIXES = (".png", ".txt", ".zip")
ORIGIN = "http://127.0.0.1:7860"


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="safelight-upload-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def upload() -> Iterator[Upload]:
    made = Upload(staging(), SUFFIXES)
    yield made
    made.close()
    assert not made.folder.exists()


async def pieces(*parts: bytes, breaks: bool = False) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if breaks:
        raise ConnectionResetError


def take(upload: Upload, name: str, at: int, size: int, *parts: bytes) -> int:
    return asyncio.run(upload.take(name, at, size, pieces(*parts)))


def test_uploads_of_a_page_lie_in_its_private_folder(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That folder goes when the program ends, and at the next start if it was killed."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(private))
    made = uploads_of(services).get("login", "u1")
    assert made.folder.is_relative_to(private)
    assert not (services.workspace.cache_dir / "studio").exists()
    taken = uploads_of(services).take_out("login", "u1")
    assert taken is made
    made.close()
    assert not list(private.iterdir())


def test_pieces_become_the_file_they_were(upload: Upload) -> None:
    data = bytes(range(256)) * 12_000  # three writes of a megabyte
    assert take(upload, "set/a.png", 0, len(data), data[:1000], data[1000:2_000_000]) == 2_000_000
    assert upload.files() == [] and upload.unfinished() == ["set/a.png"]
    assert take(upload, "set/a.png", 2_000_000, len(data), data[2_000_000:]) == len(data)
    assert take(upload, "empty.txt", 0, 0) == 0
    (name, path), (other, empty) = upload.files()
    assert (name, other) == ("set/a.png", "empty.txt")
    assert path.read_bytes() == data and empty.read_bytes() == b""
    assert path.name == "a.png" and path.is_relative_to(upload.folder)
    assert path.stat().st_mode & 0o077 == 0


def test_what_came_before_a_break_stays_and_the_rest_is_asked_for(upload: Upload) -> None:
    with pytest.raises(ConnectionResetError):
        asyncio.run(upload.take("a.png", 0, 10, pieces(b"abcd", breaks=True)))
    assert take(upload, "a.png", 0, 10, b"abcdefgh") == 4, "nothing of it is taken twice"
    assert take(upload, "a.png", 8, 10, b"ij") == 4, "nothing is taken behind a gap"
    assert take(upload, "a.png", 4, 10, b"efghij") == 10
    assert upload.files()[0][1].read_bytes() == b"abcdefghij"


def test_two_requests_for_one_file_do_not_mix(upload: Upload) -> None:
    async def both() -> list[int]:
        return await asyncio.gather(
            upload.take("a.png", 0, 4, pieces(b"ab", b"cd")), upload.take("a.png", 0, 4, pieces(b"AB", b"CD"))
        )

    assert asyncio.run(both()) == [4, 4]
    assert upload.files()[0][1].read_bytes() == b"abcd"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("../a.png", 400), ("a/../../b.png", 400), ("/etc/a.png", 400), ("a//b.png", 400), ("a\\b.png", 400), ("", 400),
        ("a\nb.png", 400), ("a\0.png", 400), ("x" * 5000 + ".png", 400), ("a.exe", 415), ("a", 415), (".png.html", 415),
    ],
)  # fmt: skip
def test_names_that_lead_out_or_are_of_other_kinds_are_refused(upload: Upload, name: str, status: int) -> None:
    with pytest.raises(RefusedRequest) as refused:
        take(upload, name, 0, 1, b"x")
    assert refused.value.status == status
    assert list(upload.folder.iterdir()) == []


def test_a_file_is_not_longer_than_announced_and_not_two(upload: Upload) -> None:
    with pytest.raises(RefusedRequest, match="longer than announced"):
        take(upload, "a.png", 0, 3, b"abcd")
    assert take(upload, "a.png", 0, 3, b"abc") == 3
    with pytest.raises(RefusedRequest, match="different sizes"):
        take(upload, "a.png", 0, 4, b"abcd")


def test_everything_has_a_limit(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 10)
    monkeypatch.setattr(uploads, "MAX_ARCHIVE_BYTES", 15)
    monkeypatch.setattr(uploads, "MAX_ARCHIVE_ENTRIES", 2)
    with pytest.raises(RefusedRequest, match="too many for one file"):
        take(upload, "a.png", 0, 11)
    take(upload, "a.png", 0, 10, b"x" * 10)
    with pytest.raises(RefusedRequest, match="at once"):
        take(upload, "b.png", 0, 6)
    take(upload, "b.png", 0, 1, b"x")
    with pytest.raises(RefusedRequest, match="More than 2 files"):
        take(upload, "c.png", 0, 1)
    monkeypatch.setattr(uploads, "FREE_DISK_RESERVE_BYTES", 1 << 60)
    fresh = Upload(staging(), SUFFIXES)
    with pytest.raises(RefusedRequest, match="disk is nearly full") as refused:
        take(fresh, "a.png", 0, 1, b"x")
    assert refused.value.status == 507
    fresh.close()


def test_of_too_many_uploads_the_first_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS_PER_LOGIN", 2)
    kept = Uploads(SUFFIXES, staging)
    first, other = kept.get("one", "1"), kept.get("two", "1")
    take(first, "a.png", 0, 2, b"x")
    second = kept.get("one", "2")
    assert kept.get("one", "1") is first
    third = kept.get("one", "3")
    assert not first.folder.exists() and second.folder.exists() and other.folder.exists()
    with pytest.raises(RefusedRequest) as refused:
        take(first, "a.png", 1, 2, b"y")
    assert refused.value.status == 410
    assert kept.take_out("two", "2") is None, "the other login's upload of that name is another one"
    assert kept.take_out("one", "2") is second
    assert kept.take_out("one", "2") is None
    for one in (second, third, other):
        one.close()


# ---- through the door of the page ----------------------------------------------------------------------------------


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return make_services(tmp_path)


@pytest.fixture
def app(services: Services) -> Starlette:
    settings = DoorSettings(
        credentials=Credentials(PASSWORD, base_delay_seconds=0.0), listens=True, upload_path=UPLOAD_PATH
    )
    return Starlette(routes=[upload_route(services)], middleware=[Middleware(Door, settings=settings)])


def logged_in(app: Starlette) -> TestClient:
    client = TestClient(app, base_url=ORIGIN)
    assert client.post("/login", data={"password": PASSWORD}, follow_redirects=False).status_code == 303
    return client


def address(upload_id: str = "u1", name: str = "a.png", at: int | str = 0, size: int | str = 4) -> str:
    return f"{UPLOAD_PATH}?upload_id={upload_id}&name={name}&at={at}&size={size}"


def test_a_piece_goes_through_the_door_for_its_login_only(app: Starlette, services: Services) -> None:
    assert TestClient(app, base_url=ORIGIN).post(address(), content=b"abcd").status_code == 401
    owner, other = logged_in(app), logged_in(app)
    assert owner.post(address(), content=b"ab").json() == {"have": 2}
    assert other.post(address(at=2), content=b"XX").status_code == 403, "it is the first login's"
    assert owner.post(address(at=2), content=b"cd").json() == {"have": 4}
    (login,) = {key[0] for key in uploads_of(services)._uploads}
    assert login
    upload = uploads_of(services).take_out(login, "u1")
    assert upload is not None and upload.files()[0][1].read_bytes() == b"abcd"
    upload.close()


def test_other_sites_methods_and_bodies_are_refused(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = logged_in(app)
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert owner.post(address(), content=b"abcd", headers=headers).status_code == 403
    assert owner.get(address()).status_code == 405
    assert owner.post(address().replace("upload_id=u1&", ""), content=b"abcd").status_code == 400
    assert owner.post(address("../../x"), content=b"abcd").status_code == 400
    for at, size in (("-1", 4), ("0", "4e9"), ("", 4), ("٣", 4), ("0", "1" * 20)):
        assert owner.post(address(at=at, size=size), content=b"abcd").status_code == 400
    refused = owner.post(address(name="a.exe"), content=b"abcd")
    assert refused.status_code == 415 and "Only .png" in refused.json()["error"]
    assert owner.post(UPLOAD_PATH + "/x?upload_id=u1", content=b"x").status_code == 404
    monkeypatch.setattr(web, "MAX_REQUEST_BODY_BYTES", 1000)
    assert owner.post(address(size=9000), content=b"x" * 2000).status_code == 413
    assert owner.post(address(size=9000), content=iter([b"x" * 600] * 4)).status_code == 413


def test_the_route_is_shut_where_the_page_has_no_uploads() -> None:
    door = Middleware(Door, settings=DoorSettings())
    client = TestClient(Starlette(routes=[], middleware=[door]), base_url=ORIGIN)
    assert client.post(address(), content=b"abcd").status_code == 404
