"""The door to the internet, against a real HTTPS server: who is asked, who gets the token, where redirects may lead."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from security.connections import tls_context
from security.errors import FailedDownload, Interrupted, NeedsLogin, RefusedUrl
from security.net import Network
from security.policy import MAX_REDIRECTS, VERSION, Service
from security.secrets import Secret
from security.urls import SafeUrl
from tests.hubs.bench import BUCKET, FILE, PATH, TOKEN, body_of
from tests.hubs.server import (
    FAST,
    Hubs,
    Reply,
    json_reply,
    loopback_hubs,
    redirect,
)


@pytest.fixture
def token() -> Secret:
    return Secret(TOKEN, "Hugging Face token")


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


def test_a_token_that_was_not_sent_is_not_blamed(hubs: Hubs, mirror: Hubs, token: Secret) -> None:
    mirror.clear()
    mirror.on("*", "/api/models/a/b", Reply(401))
    for sends, said in ((False, "wants a token"), (True, "does not know your token")):
        network = hubs.network(mirrors={Service.HUGGING_FACE: mirror.origin}, send_tokens_to_mirrors=sends)
        with pytest.raises(NeedsLogin, match=said):
            network.get_json(network.url(Service.HUGGING_FACE, "/api/models/a/b"), token=token)


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


def test_unencrypted_mirror_stays_on_this_machine(hubs: Hubs, token: Secret) -> None:
    """Whatever somebody wrote into the hosts file for localhost."""
    network = hubs.network(mirrors={Service.HUGGING_FACE: "http://localhost:8080"}, resolve=lambda _: ["10.0.0.1"])
    with pytest.raises(RefusedUrl, match="not this machine"):
        body_of(network, "http://localhost:8080/x", token)
    assert hubs.dials == []


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
