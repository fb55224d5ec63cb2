"""The door to the internet, against a real HTTPS server: who is asked, who gets the token, what ends a wait."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from security.connections import tls_context
from security.errors import Cancelled, FailedDownload, Interrupted, NeedsLogin, RefusedUrl, SafelightError
from security.net import Network, Retries
from security.policy import MAX_REDIRECTS, PATIENCE, VERSION, Service
from security.secrets import Secret
from security.statuses import retry_after
from security.urls import SafeUrl
from tests.hubs.server import (
    FAST,
    Hubs,
    Reply,
    Seen,
    json_reply,
    loopback_hubs,
    only_with_query,
    only_with_token,
    page,
    redirect,
)

TOKEN = "hf_testtokentesttokentesttokentest"
BUCKET = "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com"
FILE = "https://huggingface.co/a/b/resolve/main/x.safetensors"
PATH = "/a/b/resolve/main/x.safetensors"
IMPATIENT = replace(FAST, connect=0.5, answer=0.5, idle=0.4, json_total=1.0, attempts=1)


@pytest.fixture
def token() -> Secret:
    return Secret(TOKEN, "Hugging Face token")


def body_of(
    network: Network, text: str, token: Secret | None = None, cancelled: Callable[[], bool] | None = None
) -> bytes:
    with network.open(network.parse(text), token=token, cancelled=cancelled) as response:
        return b"".join(response.chunks())


# Who is asked, and how


def test_request_says_only_what_it_must(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(302, headers=[("Location", "/next"), ("Set-Cookie", "id=1; Path=/")]))
    hubs.on("huggingface.co", "/next", Reply(body=b"data"))
    assert body_of(hubs.network(), FILE) == b"data"
    wanted = {
        "host": "huggingface.co",
        "user-agent": f"Safelight/{VERSION}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
    }
    assert [dict(seen.headers) for seen in hubs.seen] == [wanted, wanted]
    assert [seen.tls_name for seen in hubs.seen] == ["huggingface.co"] * 2


def test_path_and_query_arrive_as_they_were_signed(hubs: Hubs) -> None:
    hubs.on(BUCKET, "/model/1/a%20b.safetensors", Reply(body=b"data"))
    query = "X-Amz-Signature=0f%2F%3d&response-content-disposition=attachment%3B%20filename%3D%22a.b%22&x=a+b~'()*"
    hubs.on("civitai.com", "/api/download/models/1", redirect(f"https://{BUCKET}/model/1/a%20b.safetensors?{query}"))
    assert body_of(hubs.network(), "https://civitai.com/api/download/models/1") == b"data"
    assert hubs.seen[-1].query == query


def test_environment_changes_nothing(
    hubs: Hubs, token: Secret, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Proxies, netrc, certificate and key log variables of the environment are not looked at."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.05)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, address)
        netrc = tmp_path / "netrc"
        netrc.write_text("machine huggingface.co login somebody password somesecret\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.setenv(name, str(hubs.ca_file))
        hubs.on("huggingface.co", PATH, Reply(body=b"data"))
        assert body_of(hubs.network(), FILE) == b"data"
        assert hubs.seen[0].token is None
        assert not (tmp_path / "keys").exists()
        with pytest.raises(TimeoutError):
            proxy.accept()
        # The authorities of the environment are not trusted: without `ca_file` the test server is a stranger.
        stranger = Network(resolve=hubs.resolve, dial=hubs.dial, patience=FAST)
        with pytest.raises(FailedDownload, match="could not prove that it is huggingface"):
            body_of(stranger, FILE)
    assert len(hubs.seen) == 1


def test_certificate_of_another_authority_is_refused(hubs: Hubs, token: Secret) -> None:
    hubs.on("huggingface.co", PATH, Reply(body=b"data"))
    with (
        loopback_hubs() as others,
        pytest.raises(FailedDownload, match=r"could not prove .* Nothing was sent") as caught,
    ):
        body_of(hubs.network(ca_file=others.ca_file), FILE, token)
    assert not isinstance(caught.value, Interrupted)  # trying again would not help
    assert hubs.seen == []


def test_certificate_of_another_name_is_refused(hubs: Hubs) -> None:
    """The server's certificate has no www.hf.co in it."""
    hubs.on("www.hf.co", "/x", Reply(body=b"data"))
    with pytest.raises(FailedDownload, match=r"could not prove that it is www\.hf\.co"):
        body_of(hubs.network(), "https://www.hf.co/x")
    assert hubs.seen == []


def test_tls_settings() -> None:
    context = tls_context(None)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname and not context.hostname_checks_common_name
    assert len(context.get_ca_certs()) > 50


def test_address_put_together_by_hand_is_refused(hubs: Hubs) -> None:
    for url in (
        SafeUrl(Service.HUGGING_FACE, "https", "evil.example", 443, "/", ""),
        SafeUrl(Service.HUGGING_FACE, "https", "huggingface.co", 8443, "/", ""),
        SafeUrl(Service.HUGGING_FACE, "http", "huggingface.co", 80, "/", ""),
        SafeUrl(Service.HUGGING_FACE, "https", "huggingface.co", 443, "/a/../b", ""),
        SafeUrl(Service.HUGGING_FACE, "https", "huggingface.co", 443, "/a b", ""),
        SafeUrl(Service.CIVITAI, "https", "huggingface.co", 443, "/", ""),
    ):
        with pytest.raises(RefusedUrl), hubs.network().open(url):
            pass
    assert hubs.dials == [] and hubs.lookups == []


# Redirects and tokens


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_token_stays_at_the_hub(hubs: Hubs, token: Secret, status: int) -> None:
    hubs.on("huggingface.co", PATH, redirect("/api/resolve-cache/x", status))
    hubs.on("huggingface.co", "/api/resolve-cache/x", redirect("https://hf.co/x", status))
    hubs.on("hf.co", "/x", redirect("https://cdn-lfs.hf.co/x?Signature=abc", status))
    hubs.on("cdn-lfs.hf.co", "/x", Reply(body=b"data"))
    assert body_of(hubs.network(), FILE, token) == b"data"
    bearer = f"Bearer {TOKEN}"
    assert [(seen.host, seen.token) for seen in hubs.seen] == [
        ("huggingface.co", bearer),
        ("huggingface.co", bearer),
        ("hf.co", bearer),
        ("cdn-lfs.hf.co", None),
    ]
    assert not any(
        TOKEN in value for seen in hubs.seen[3:] for value in [seen.path, seen.query, *seen.headers.values()]
    )


@pytest.mark.parametrize(
    "storage",
    [
        f"https://{BUCKET}/model/1?X-Amz-Signature=abc",
        "https://b2.civitai.com/file/civitai-modelfiles/model/x",
        "https://s3.us-west-004.backblazeb2.com/civitai-modelfiles/x",
    ],
)
def test_signed_storage_never_gets_a_token(hubs: Hubs, token: Secret, storage: str) -> None:
    """It would also answer 400 to a request that is signed and has an Authorization header."""
    host, _, path = storage.removeprefix("https://").partition("?")[0].partition("/")
    hubs.on("civitai.com", "/api/download/models/1", redirect(storage, 307))
    hubs.on(host, f"/{path}", lambda seen: Reply(400) if seen.token else Reply(body=b"data"))
    assert body_of(hubs.network(), "https://civitai.com/api/download/models/1", token) == b"data"
    assert [seen.token is not None for seen in hubs.seen] == [True, False]


def test_token_comes_back_only_at_the_hub_itself(hubs: Hubs, token: Secret) -> None:
    hubs.on("huggingface.co", PATH, redirect("https://cdn-lfs.hf.co/x"))
    hubs.on("cdn-lfs.hf.co", "/x", redirect("https://www.huggingface.co/y"))
    hubs.on("www.huggingface.co", "/y", redirect("https://huggingface.co/z"))
    hubs.on("huggingface.co", "/z", Reply(body=b"data"))
    assert body_of(hubs.network(), FILE, token) == b"data"
    assert [seen.token is not None for seen in hubs.seen] == [True, False, False, True]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://evil.example/x", "not a host"),
        ("https://evil.hf.space/x", "not a host"),
        ("https://evil-huggingface.co/x", "not a host"),
        ("https://civitai.com/x", "not a host"),
        ("//evil.example/x", "not a host"),
        ("https://evil.example\\@huggingface.co/x", "backslash"),
        ("http://huggingface.co/x", "Only https"),
        ("https://huggingface.co:8443/x", "port"),
        ("https://127.0.0.1/x", "IP address"),
        ("https://huggingface.co/a/%2e%2e/x", "hides"),
        ("file:///etc/passwd", "Only https"),
    ],
)
def test_redirect_elsewhere_is_not_followed(hubs: Hubs, token: Secret, location: str, reason: str) -> None:
    hubs.on("huggingface.co", PATH, redirect(location))
    hubs.on("*", "/x", Reply(body=b"evil"))
    with pytest.raises(RefusedUrl, match=reason):
        body_of(hubs.network(), FILE, token)
    assert len(hubs.seen) == len(hubs.dials) == len(hubs.lookups) == 1


def test_bucket_of_somebody_else_is_not_followed(hubs: Hubs) -> None:
    other = "https://other-bucket.00000000000000000000000000000000.r2.cloudflarestorage.com/x"
    hubs.on("civitai.com", "/api/download/models/1", redirect(other))
    with pytest.raises(RefusedUrl, match="not a host that Civitai"):
        body_of(hubs.network(), "https://civitai.com/api/download/models/1")
    assert len(hubs.seen) == 1


def test_redirects_in_a_circle_end(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, redirect("https://cdn-lfs.hf.co/x"))
    hubs.on("cdn-lfs.hf.co", "/x", redirect(FILE))
    with pytest.raises(FailedDownload, match="circle"):
        body_of(hubs.network(), FILE)
    assert len(hubs.seen) == 2


@pytest.mark.parametrize(("count", "works"), [(MAX_REDIRECTS, True), (MAX_REDIRECTS + 1, False)])
def test_number_of_redirects_is_limited(hubs: Hubs, count: int, works: bool) -> None:
    for number in range(count):
        hubs.on("huggingface.co", f"/{number}", redirect(f"/{number + 1}"))
    hubs.on("huggingface.co", f"/{count}", Reply(body=b"data"))
    if works:
        assert body_of(hubs.network(), "https://huggingface.co/0") == b"data"
    else:
        with pytest.raises(FailedDownload, match=f"over {MAX_REDIRECTS} redirects"):
            body_of(hubs.network(), "https://huggingface.co/0")
    assert len(hubs.seen) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("headers", [[], [("Location", "/next"), ("Location", "https://evil.example/")]])
def test_redirect_to_none_or_two_places_is_a_fault(hubs: Hubs, headers: list[tuple[str, str]]) -> None:
    hubs.on("huggingface.co", PATH, Reply(302, headers=headers))
    with pytest.raises(FailedDownload, match="redirects to"):
        body_of(hubs.network(), FILE)


def test_login_page_asks_for_the_token(hubs: Hubs) -> None:
    hubs.on("civitai.com", "/api/download/models/1", redirect("/login?returnUrl=/x&reason=download-auth"))
    with pytest.raises(NeedsLogin, match="wants a token") as caught:
        body_of(hubs.network(), "https://civitai.com/api/download/models/1")
    assert caught.value.link == "https://civitai.com/user/account"


# Mirrors


@pytest.fixture(scope="module")
def mirror() -> Iterator[Hubs]:
    with loopback_hubs(tls=False) as running:
        yield running


def test_mirror_gets_requests_and_no_token(hubs: Hubs, mirror: Hubs, token: Secret) -> None:
    mirror.clear()
    mirror.on("*", "/api/models/a/b", json_reply({"id": "a/b"}))
    network = hubs.network(mirrors={Service.HUGGING_FACE: mirror.origin})
    assert network.get_json(network.url(Service.HUGGING_FACE, "/api/models/a/b"), token=token) == {"id": "a/b"}
    assert hubs.seen == []
    assert mirror.seen[0].token is None
    assert mirror.seen[0].host == mirror.origin.removeprefix("http://")


def test_mirror_gets_the_token_when_the_user_says_so(hubs: Hubs, mirror: Hubs, token: Secret) -> None:
    """It still goes to the mirror alone, not to the storage that the mirror names."""
    mirror.clear()
    mirror.on("*", PATH, redirect("https://cdn-lfs.hf.co/x"))
    hubs.on("cdn-lfs.hf.co", "/x", Reply(body=b"data"))
    network = hubs.network(mirrors={Service.HUGGING_FACE: mirror.origin}, send_tokens_to_mirrors=True)
    assert body_of(network, mirror.origin + PATH, token) == b"data"
    assert mirror.seen[0].token == f"Bearer {TOKEN}"
    assert hubs.seen[0].token is None


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/x", "https://evil.example/x", "http://huggingface.co/x"])
def test_mirror_adds_no_other_place(hubs: Hubs, mirror: Hubs, location: str) -> None:
    mirror.clear()
    mirror.on("*", PATH, redirect(location))
    with pytest.raises(RefusedUrl):
        body_of(hubs.network(mirrors={Service.HUGGING_FACE: mirror.origin}), mirror.origin + PATH)
    assert len(mirror.seen) == 1 and hubs.seen == []


def test_hub_does_not_send_us_to_an_unencrypted_mirror(hubs: Hubs, mirror: Hubs) -> None:
    mirror.clear()
    hubs.on("huggingface.co", PATH, redirect(mirror.origin + "/x"))
    with pytest.raises(RefusedUrl, match="from https to http"):
        body_of(hubs.network(mirrors={Service.HUGGING_FACE: mirror.origin}), FILE)
    assert mirror.seen == []


def test_encrypted_mirror_on_an_address(hubs: Hubs) -> None:
    """TLS holds for mirrors as well: the certificate names the address."""
    hubs.on("*", PATH, Reply(body=b"data"))
    network = hubs.network(mirrors={Service.HUGGING_FACE: hubs.origin})
    assert body_of(network, hubs.origin + PATH) == b"data"
    with loopback_hubs() as others, pytest.raises(FailedDownload, match="could not prove"):
        body_of(hubs.network(mirrors={Service.HUGGING_FACE: hubs.origin}, ca_file=others.ca_file), hubs.origin + PATH)


def test_refusals_of_a_mirror_are_those_of_a_hub(hubs: Hubs, mirror: Hubs) -> None:
    mirror.clear()
    mirror.on("*", PATH, Reply(404))
    with pytest.raises(FailedDownload, match="no such file") as caught:
        body_of(hubs.network(mirrors={Service.HUGGING_FACE: mirror.origin}), mirror.origin + PATH)
    assert not isinstance(caught.value, Interrupted)


# What statuses mean

STATUSES: list[tuple[int, list[tuple[str, str]], bool, type[SafelightError], str, str]] = [
    (401, [], False, NeedsLogin, "wants a token for a/b", "https://huggingface.co/settings/tokens"),
    (401, [("X-Error-Code", "RepoNotFound")], False, NeedsLogin, "does not exist or is private", "https://huggingface.co/settings/tokens"),
    (401, [("X-Error-Code", "GatedRepo")], False, NeedsLogin, "accept terms first.*make a token", "https://huggingface.co/a/b"),
    (403, [("X-Error-Code", "GatedRepo")], True, NeedsLogin, r"accept terms first.*accept them\.$", "https://huggingface.co/a/b"),
    (401, [], True, NeedsLogin, "does not know your token any more", "https://huggingface.co/settings/tokens"),
    (401, [("X-Error-Code", "RepoNotFound")], True, NeedsLogin, "Your token does not open a/b", "https://huggingface.co/a/b"),
    (403, [], True, NeedsLogin, "Your token does not open a/b", "https://huggingface.co/a/b"),
    (404, [], False, FailedDownload, "no such file or model", ""),
    (404, [("X-Error-Code", "EntryNotFound")], False, FailedDownload, "no such file in this model", ""),
    (404, [("X-Error-Code", "RevisionNotFound")], False, FailedDownload, "no such version of this model", ""),
    (404, [("X-Error-Code", "RepoNotFound")], True, FailedDownload, "no such model", ""),
    (410, [], False, FailedDownload, "no such file", ""),
    (451, [], False, FailedDownload, "legal reasons", ""),
    (400, [], False, FailedDownload, "status 400", ""),
    (204, [], False, FailedDownload, "status 204", ""),
    (300, [], False, FailedDownload, "status 300", ""),
    (304, [], False, FailedDownload, "status 304", ""),
    (429, [], False, Interrupted, "too many requests from here. Try again in a while", ""),
    (429, [("Retry-After", "1")], False, Interrupted, "Try again in 1 seconds", ""),
    (500, [], False, Interrupted, "fault of its own", ""),
    (502, [], False, Interrupted, "fault of its own", ""),
    (503, [("Retry-After", "1")], False, Interrupted, "fault of its own", ""),
]  # fmt: skip
"""(status, headers, had a token, error, words, link)."""


@pytest.mark.parametrize(("status", "headers", "with_token", "kind", "words", "link"), STATUSES)
def test_status_is_told_plainly(
    hubs: Hubs,
    token: Secret,
    status: int,
    headers: list[tuple[str, str]],
    with_token: bool,
    kind: type[SafelightError],
    words: str,
    link: str,
) -> None:
    hubs.on("huggingface.co", PATH, Reply(status, b"" if status in (204, 304) else b"no", headers))
    with pytest.raises(kind, match=words) as caught:
        body_of(hubs.network(), FILE + "?private=thing", token if with_token else None)
    assert type(caught.value) is kind
    assert getattr(caught.value, "link", "") == link
    assert "private=thing" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_signed_address_that_ran_out_is_worth_another_try(hubs: Hubs, status: int) -> None:
    hubs.on(
        "huggingface.co",
        PATH,
        redirect("https://cdn-lfs.hf.co/x?Expires=1"),
        redirect("https://cdn-lfs.hf.co/x?Expires=2"),
    )
    hubs.on("cdn-lfs.hf.co", "/x", only_with_query("Expires=2", Reply(body=b"data"), Reply(status)))
    network = hubs.network()
    with pytest.raises(Interrupted, match="may have run out"):
        body_of(network, FILE)
    assert body_of(network, FILE) == b"data"


def test_token_opens_what_it_should(hubs: Hubs, token: Secret) -> None:
    hubs.on("huggingface.co", PATH, only_with_token(TOKEN, Reply(body=b"data"), Reply(401)))
    assert body_of(hubs.network(), FILE, token) == b"data"
    with pytest.raises(NeedsLogin):
        body_of(hubs.network(), FILE)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), (" 0 ", 0.0), ("", None), ("soon", None), ("-5", None), ("1e9", None), ("9" * 40, None)],
)
def test_retry_after_is_read(text: str, seconds: float | None) -> None:
    assert retry_after(text) == seconds


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 57 < (retry_after(later) or 0) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


# Trying again


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_busy_hub_is_asked_again(hubs: Hubs, status: int) -> None:
    hubs.on("huggingface.co", "/j", Reply(status), Reply(status), json_reply({"ok": 1}))
    network = hubs.network()
    assert network.get_json(network.parse("https://huggingface.co/j")) == {"ok": 1}
    assert len(hubs.seen) == 3


def test_broken_connection_is_tried_again(hubs: Hubs) -> None:
    whole = json_reply(list(range(1000)))
    hubs.on(
        "huggingface.co", "/j", replace(whole, stop_after=100), replace(whole, announced=99_999), Reply(raw=b""), whole
    )
    network = hubs.network()
    assert network.get_json(network.parse("https://huggingface.co/j")) == list(range(1000))
    assert len(hubs.seen) == 4


def test_tries_end_with_the_last_fault(hubs: Hubs) -> None:
    hubs.on("huggingface.co", "/j", Reply(500))
    network = hubs.network(replace(FAST, attempts=3))
    with pytest.raises(Interrupted, match="status 500"):
        network.get_json(network.parse("https://huggingface.co/j"))
    assert len(hubs.seen) == 3


@pytest.mark.parametrize("reply", [Reply(404), Reply(401), page(), Reply(body=b"{"), Reply(400)])
def test_what_will_not_get_better_is_asked_once(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", "/j", reply)
    network = hubs.network()
    with pytest.raises(FailedDownload):
        network.get_json(network.parse("https://huggingface.co/j"))
    assert len(hubs.seen) == 1


def test_pauses_double_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("security.net.time.monotonic", lambda: now[0])
    monkeypatch.setattr("security.net.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    retries = Retries(
        replace(PATIENCE, attempts=9, first_pause=1.0, longest_pause=10.0, longest_retry_after=120.0), None
    )
    pauses = []
    for wait in (None, None, None, None, None, 30.0, 0.0):
        before = now[0]
        retries.wait(Interrupted("x", wait))
        pauses.append(round(now[0] - before, 3))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 30.0, 1.0]
    with pytest.raises(Interrupted):
        retries.wait(Interrupted("the hub wants more time than anybody has", 3600.0))
    retries.progressed()
    before = now[0]
    retries.wait(Interrupted("x"))
    assert now[0] - before == pytest.approx(1.0)


def test_waiting_for_the_next_try_can_be_cancelled(hubs: Hubs) -> None:
    hubs.on("huggingface.co", "/j", Reply(500))
    network = hubs.network(replace(FAST, first_pause=30.0, longest_pause=30.0))
    start = time.monotonic()
    with pytest.raises(Cancelled):
        network.get_json(network.parse("https://huggingface.co/j"), cancelled=lambda: time.monotonic() - start > 0.2)
    assert time.monotonic() - start < 2


# Waits that end


def timed(action: Callable[[], object]) -> tuple[SafelightError, float]:
    """The error that `action` ends with, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(SafelightError) as caught:
        action()
    return caught.value, time.monotonic() - start


def test_dripping_headers_end(hubs: Hubs) -> None:
    """Each byte comes in time; only the whole is too slow."""
    hubs.on("huggingface.co", PATH, Reply(body=b"data", header_pause=0.05))
    error, seconds = timed(lambda: body_of(hubs.network(IMPATIENT), FILE))
    assert isinstance(error, Interrupted) and "did not answer within" in str(error)
    assert 0.4 < seconds < 1.5


def test_silence_instead_of_headers_ends(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(raw=b"H", header_pause=20.0))
    error, seconds = timed(lambda: body_of(hubs.network(IMPATIENT), FILE))
    assert isinstance(error, Interrupted) and "did not answer within" in str(error)
    assert seconds < 1.5


def test_silence_instead_of_tls_ends(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        network = hubs.network(IMPATIENT)
        monkeypatch.setattr(
            network, "_dial", lambda _a, _p, seconds: socket.create_connection(("127.0.0.1", port), timeout=seconds)
        )
        error, seconds = timed(lambda: body_of(network, FILE))
    assert isinstance(error, Interrupted)
    assert seconds < 1.5


def test_dripping_tls_ends(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake record of 16 KiB that comes one byte at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with server.accept()[0] as client:
                for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 1000:
                    try:
                        client.sendall(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        port = server.getsockname()[1]
        network = hubs.network(IMPATIENT)
        monkeypatch.setattr(
            network, "_dial", lambda _a, _p, seconds: socket.create_connection(("127.0.0.1", port), timeout=seconds)
        )
        error, seconds = timed(lambda: body_of(network, FILE))
        thread.join()
    assert isinstance(error, Interrupted)
    assert seconds < 1.5


def test_stalled_body_ends(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(body=bytes(200), piece=100, pause=1.0))
    error, seconds = timed(lambda: body_of(hubs.network(IMPATIENT), FILE))
    assert isinstance(error, Interrupted) and "Nothing came for" in str(error)
    assert seconds < 1.5


def test_dripping_body_ends(hubs: Hubs) -> None:
    """A byte every now and then keeps a read timeout from ever firing; the least speed does not let it pass."""
    hubs.on("huggingface.co", PATH, Reply(body=bytes(5000), piece=1, pause=0.02))
    patience = replace(FAST, throughput_window=0.5, throughput_bytes_per_second=1000)
    error, seconds = timed(lambda: body_of(hubs.network(patience), FILE))
    assert isinstance(error, Interrupted) and "are the least" in str(error)
    assert 0.4 < seconds < 2


def test_steady_body_is_fast_enough(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(body=bytes(2000), piece=100, pause=0.02))
    patience = replace(FAST, throughput_window=0.1, throughput_bytes_per_second=1000)
    assert body_of(hubs.network(patience), FILE) == bytes(2000)


def test_slow_reader_is_not_taken_for_a_slow_hub(hubs: Hubs) -> None:
    """Writing to a slow disk between two reads is no fault of the hub."""
    hubs.on("huggingface.co", PATH, Reply(body=bytes(300_000)))
    network = hubs.network(replace(FAST, idle=0.2, throughput_window=0.3, throughput_bytes_per_second=10_000_000))
    count = 0
    with network.open(network.parse(FILE)) as response:
        for piece in response.chunks():
            count += len(piece)
            time.sleep(0.05)
    assert count == 300_000


def test_body_has_a_last_moment(hubs: Hubs) -> None:
    hubs.on("huggingface.co", "/j", replace(json_reply("x" * 2000), piece=10, pause=0.05))
    network = hubs.network(replace(IMPATIENT, json_total=0.5))
    error, seconds = timed(lambda: network.get_json(network.parse("https://huggingface.co/j")))
    assert isinstance(error, Interrupted) and "did not finish within" in str(error)
    assert 0.4 < seconds < 1.5


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"data", header_pause=0.1),
        Reply(raw=b"H", header_pause=20.0),
        Reply(body=bytes(10_000), piece=10, pause=0.1),
        Reply(body=bytes(10_000), piece=10, pause=0.1, chunked=True),
        Reply(body=bytes(200), piece=100, pause=20.0),
    ],
    ids=["headers", "silence", "body", "chunks", "stall"],
)
def test_cancelling_ends_any_wait(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", PATH, reply)
    start = time.monotonic()
    error, seconds = timed(lambda: body_of(hubs.network(), FILE, cancelled=lambda: time.monotonic() - start > 0.3))
    assert isinstance(error, Cancelled)
    assert seconds < 1.0


# Bodies

REFUSED_ANSWERS: list[tuple[str, Reply, str]] = [
    ("gzip", Reply(body=gzip.compress(bytes(50_000)), headers=[("Content-Encoding", "gzip")]), "packed answer"),
    ("gzip chain", Reply(body=b"x", headers=[("Content-Encoding", "gzip, gzip")]), "packed answer"),
    ("brotli after identity", Reply(headers=[("Content-Encoding", "identity"), ("Content-Encoding", "br")]), "packed"),
    ("length and chunks", Reply(body=b"0123456789", chunked=True, announced=5), "in two ways"),
    ("two lengths", Reply(body=b"data", headers=[("Content-Length", "3")]), "announces its answer's length as"),
    ("negative length", Reply(announced=-1), "announces its answer's length as"),
    ("length with a sign", Reply(announced=None, headers=[("Content-Length", "+4")]), "length as"),
    ("length as a list", Reply(announced=None, headers=[("Content-Length", "4, 4")]), "length as"),
    ("packed transfer", Reply(announced=None, headers=[("Transfer-Encoding", "gzip, chunked")]), "in two ways"),
    ("twice chunked", Reply(chunked=True, headers=[("Transfer-Encoding", "chunked")]), "in two ways"),
    ("web page", page(), "a web page"),
    ("web page in capitals", Reply(content_type="TEXT/HTML"), "a web page"),
    ("xhtml", Reply(content_type="application/xhtml+xml"), "a web page"),
    (
        "a line that hides a header",
        Reply(headers=[("X\r\nno header at all", "x"), ("Content-Encoding", "gzip")]),
        "malformed",
    ),
    ("a folded header", Reply(headers=[("X", "a\r\n Content-Encoding: gzip")]), "malformed"),
    ("a header without a name", Reply(headers=[("", "x"), ("Content-Encoding", "gzip")]), "malformed"),
    ("part", Reply(206, b"data", [("Content-Range", "bytes 0-3/10")]), "with a part"),
    ("unasked 416", Reply(416), "with a part"),
]
"""(what it is, the answer, words of the refusal): refused before any of the body is read."""

BROKEN_ANSWERS: list[tuple[str, Reply]] = [
    ("shorter than announced", Reply(body=b"data", announced=10)),
    ("reset", Reply(body=bytes(100_000), stop_after=50_000)),
    ("reset in chunks", Reply(body=bytes(100_000), stop_after=50_000, chunked=True)),
    ("chunks without an end", Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n")),
    (
        "chunks that are none",
        Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\ndata\r\n0\r\n\r\n"),
    ),
    ("no HTTP", Reply(raw=b"220 ftp.example ready\r\n")),
    ("nothing", Reply(raw=b"")),
    ("half a head", Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le")),
    ("a header line of 70 kB", Reply(headers=[("X-Long", "x" * 70_000)])),
    ("200 headers", Reply(headers=[(f"X-{number}", "x") for number in range(200)])),
]


@pytest.mark.parametrize(
    ("reply", "words"), [row[1:] for row in REFUSED_ANSWERS], ids=[row[0] for row in REFUSED_ANSWERS]
)
def test_answer_is_refused(hubs: Hubs, reply: Reply, words: str) -> None:
    hubs.on("huggingface.co", PATH, reply)
    with pytest.raises(FailedDownload, match=words) as caught:
        body_of(hubs.network(), FILE)
    assert not isinstance(caught.value, Interrupted)


@pytest.mark.parametrize("reply", [row[1] for row in BROKEN_ANSWERS], ids=[row[0] for row in BROKEN_ANSWERS])
def test_broken_answer_is_interrupted(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", PATH, reply)
    with pytest.raises(Interrupted):
        body_of(hubs.network(), FILE)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000])
def test_body_is_what_was_sent(hubs: Hubs, data: bytes, chunked: bool) -> None:
    """Also when it looks packed: nothing is decoded."""
    packed = gzip.compress(data)
    hubs.on("huggingface.co", PATH, Reply(body=packed, chunked=chunked, piece=1000))
    assert body_of(hubs.network(), FILE) == packed


def test_answer_longer_than_announced_ends_at_its_length(hubs: Hubs) -> None:
    hubs.on("huggingface.co", PATH, Reply(body=b"0123456789", announced=4))
    assert body_of(hubs.network(), FILE) == b"0123"


@pytest.mark.parametrize("reply", [json_reply("x" * 3000), replace(json_reply("x" * 3000), chunked=True)])
def test_json_is_bounded(hubs: Hubs, reply: Reply) -> None:
    hubs.on("huggingface.co", "/j", reply)
    network = hubs.network()
    with pytest.raises(FailedDownload, match="longer than 2000 bytes"):
        network.get_json(network.parse("https://huggingface.co/j"), max_bytes=2000)
    assert network.get_json(network.parse("https://huggingface.co/j"), max_bytes=4000) == "x" * 3000


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"<html>", b'{"a": 1} x'])
def test_what_is_no_json_is_refused(hubs: Hubs, body: bytes) -> None:
    hubs.on("huggingface.co", "/j", Reply(body=body, content_type="application/json"))
    network = hubs.network()
    with pytest.raises(FailedDownload, match="not JSON"):
        network.get_json(network.parse("https://huggingface.co/j"))


# Nothing secret is told


def test_no_fault_tells_the_token_or_the_query(
    hubs: Hubs, token: Secret, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    signed = "https://cdn-lfs.hf.co/x?Signature=verysecretsignature"
    network = hubs.network(replace(IMPATIENT, connect=0.3, answer=0.3))
    replies = [
        *(Reply(status) for status in (400, 401, 403, 404, 429, 451, 500)),
        *(reply for _, reply, _ in REFUSED_ANSWERS),
        *(reply for _, reply in BROKEN_ANSWERS),
        redirect("https://evil.example/?Signature=verysecretsignature"),
        redirect("https://user:verysecretsignature@evil.example/"),
        redirect(signed),
        Reply(body=b"x", header_pause=0.1),
    ]
    told = []
    for reply in replies:
        for host, path, text in (("huggingface.co", PATH, FILE), ("cdn-lfs.hf.co", "/x", signed)):
            hubs.on("huggingface.co", PATH, redirect(signed))
            hubs.on(host, path, reply)
            with pytest.raises(SafelightError) as caught:
                network.get_json(network.parse(FILE + "?Signature=verysecretsignature"), token=token)
            error: BaseException | None = caught.value
            while error is not None:
                told.append(f"{error!r} {text}" if host == "" else repr(error))
                error = None if error.__suppress_context__ else error.__cause__ or error.__context__
    told.append(caplog.text)
    told.extend(capfd.readouterr())
    assert len(told) > 60
    assert not any("verysecretsignature" in text or TOKEN in text for text in told)


def test_tokens_and_sockets_do_not_stay(hubs: Hubs, token: Secret) -> None:
    """A Network keeps nothing of a request, so one object can serve all threads and users."""
    hubs.on("huggingface.co", "/j", lambda seen: json_reply(seen.token))
    network = hubs.network()
    url = network.parse("https://huggingface.co/j")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    for _ in range(3):
        assert network.get_json(url, token=token) == f"Bearer {TOKEN}"
        assert network.get_json(url) is None
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    assert after <= before + 1
    kept = {name: repr(value) for name, value in vars(network).items() if name not in ("_resolve", "_dial")}
    assert TOKEN not in json.dumps(kept)


def test_many_threads_share_one_network(hubs: Hubs) -> None:
    def number(seen: Seen) -> Reply:
        return json_reply(seen.path)

    results: list[object] = []
    network = hubs.network(replace(FAST, connect=10, answer=10))
    for index in range(12):
        hubs.on("huggingface.co", f"/{index}", number)
    threads = [
        threading.Thread(
            target=lambda index=index: results.append(
                network.get_json(network.parse(f"https://huggingface.co/{index}"))
            )
        )
        for index in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == sorted(f"/{index}" for index in range(12))
