"""Addresses: what parsers disagree about, what hides a host, and what may be opened. Every row was written for this."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from urllib3.util import parse_url

from security.errors import RefusedUrl
from security.net import Network
from security.policy import HOST_RULES, MAX_REDIRECT_URL, MAX_TYPED_URL, SECRET_PARAMETERS, Service
from security.urls import Origin, SafeUrl, _check_parsers, build, gets_token, parse_mirror, parse_redirect, parse_typed

BUCKET = "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com"

REFUSED_URLS: tuple[tuple[str, str], ...] = (
    # Parsers read these differently: the standard library one host, the HTTP library another.
    ("https://evil.example\\@huggingface.co/", "backslash"),
    ("https://huggingface.co\\@evil.example/", "backslash"),
    ("https://huggingface.co\\.evil.example/", "backslash"),
    ("https:\\\\huggingface.co/a", "backslash"),
    ("https:/\\huggingface.co/a", "backslash"),
    ("https://huggingface.co/a\\..\\b", "backslash"),
    ("https://huggingface.co%2eevil.example/", "% sign"),
    ("https://huggingface.co%2Fevil.example/", "% sign"),
    ("https://huggingface.co%00.evil.example/", "% sign"),
    ("https://hugging%66ace.co/a", "% sign"),
    ("https://huggingface.co%23.evil.example/", "% sign"),
    (" https://huggingface.co/a", "space or control"),
    ("https://huggingface.co/a ", "space or control"),
    ("https://hugging face.co/a", "space or control"),
    ("https://huggingface.co/a b", "space or control"),
    ("https://huggingface.co/a\r\nX-Y: z", "space or control"),
    ("https://huggingface.co/a\nb", "space or control"),
    ("https://hugging\tface.co/a", "space or control"),
    ("ht\ntps://huggingface.co/a", "space or control"),
    ("https://huggingface.co/\x00", "space or control"),
    ("https://huggingface.co/\x7f", "space or control"),
    ("\x01https://huggingface.co/", "space or control"),
    ("https://huggingface.co/\u00e9", "outside of ASCII"),
    ("https://huggingface.co/\u202egpj", "outside of ASCII"),
    ("https://hugging\u00adface.co/", "outside of ASCII"),
    ("https://huggingface\u3002co/", "outside of ASCII"),
    ("https://huggingface\uff0eco/", "outside of ASCII"),
    ("https://\uff48uggingface.co/", "outside of ASCII"),
    ("https://hugg\u0456ngface.co/", "outside of ASCII"),
    ("https://huggingface.c\u2102/", "outside of ASCII"),
    ("https://huggingface.co\u2044.evil.example/", "outside of ASCII"),
    ("https://huggingface.co\uff0fevil.example/", "outside of ASCII"),
    ("https://huggingface.co\uff20evil.example/", "outside of ASCII"),
    ("\ufeffhttps://huggingface.co/", "outside of ASCII"),
    ("https://huggingface.co/\ud800", "outside of ASCII"),
    # Users, passwords and hosts in the wrong place.
    ("https://huggingface.co@evil.example/", "user name"),
    ("https://evil.example@huggingface.co/", "user name"),
    ("https://user:secret@huggingface.co/a", "user name"),
    ("https://:@huggingface.co/a", "user name"),
    ("https://@huggingface.co/a", "user name"),
    ("https://a@b@huggingface.co/", "user name"),
    ("https://huggingface.co:443@evil.example/", "user name"),
    ("https://huggingface.co:@evil.example/", "user name"),
    ("https://evil.example?@huggingface.co/", "not a host"),
    ("https://evil.example#@huggingface.co/", "not a host"),
    ("https://evil.example/@huggingface.co", "not a host"),
    ("https://evil.example;huggingface.co/", "no plain host name"),
    ("https://evil.example,huggingface.co/", "no plain host name"),
    ("https://evil.example&huggingface.co/", "no plain host name"),
    # Schemes.
    ("http://huggingface.co/a", "only https"),
    ("HTTP://huggingface.co/a", "only https"),
    ("ftp://huggingface.co/a", "only https"),
    ("file://huggingface.co/etc/passwd", "only https"),
    ("file:///etc/passwd", "only https"),
    ("gopher://huggingface.co/_x", "only https"),
    ("hf://datasets/a/b", "only https"),
    ("ws://huggingface.co/", "only https"),
    ("wss://huggingface.co/", "only https"),
    ("httpss://huggingface.co/", "only https"),
    ("git+https://huggingface.co/a", "only https"),
    ("view-source:https://huggingface.co/a", "no whole address"),
    ("javascript:alert(1)", "no whole address"),
    ("data:text/html,x", "no whole address"),
    ("blob:https://huggingface.co/1", "no whole address"),
    ("https:huggingface.co/a", "no whole address"),
    ("https:/huggingface.co/a", "no whole address"),
    ("https//huggingface.co/a", "no whole address"),
    ("://huggingface.co/a", "no whole address"),
    ("//huggingface.co/a", "no whole address"),
    ("huggingface.co/a/b", "no whole address"),
    ("/a/b", "no whole address"),
    ("C:/models/x.safetensors", "no whole address"),
    ("1https://huggingface.co/", "no whole address"),
    ("", "no whole address"),
    ("https", "no whole address"),
    ("https://", "no host"),
    ("https:///huggingface.co/a", "no host"),
    ("https://?x", "no host"),
    ("https://#x", "no host"),
    # Ports.
    ("https://huggingface.co:/a", "port"),
    ("https://huggingface.co:80/a", "port"),
    ("https://huggingface.co:8443/a", "port"),
    ("https://huggingface.co:0443/a", "port"),
    ("https://huggingface.co:+443/a", "port"),
    ("https://huggingface.co:443:443/a", "port"),
    ("https://huggingface.co:99999/a", "port"),
    ("https://huggingface.co:x/a", "port"),
    ("https://huggingface.co::443/a", "port"),
    # IP addresses, in all their spellings.
    ("https://127.0.0.1/", "IP address"),
    ("https://8.8.8.8/", "IP address"),
    ("https://2130706433/", "IP address"),
    ("https://0x7f000001/", "IP address"),
    ("https://0x7f.0.0.1/", "IP address"),
    ("https://0177.0.0.1/", "IP address"),
    ("https://127.1/", "IP address"),
    ("https://0/", "IP address"),
    ("https://0x/", "IP address"),
    ("https://1.2.3.4.5/", "IP address"),
    ("https://huggingface.co.127/", "IP address"),
    ("https://huggingface.0x7f/", "IP address"),
    ("https://[::1]/", "IP address"),
    ("https://[::ffff:127.0.0.1]/", "IP address"),
    ("https://[huggingface.co]/", "IP address"),
    ("https://[::1]huggingface.co/", "IP address"),
    ("https://[fe80::1%25eth0]/", "% sign"),
    ("https://]huggingface.co/", "IP address"),
    ("https://127.0.0.1./", "no plain host name"),
    # Host names that are none, or not the ones meant.
    ("https://huggingface.co./a", "no plain host name"),
    ("https://.huggingface.co/a", "no plain host name"),
    ("https://huggingface..co/a", "no plain host name"),
    ("https://hugging_face.co/a", "no plain host name"),
    ("https://huggingface.co*/a", "no plain host name"),
    ("https://*.huggingface.co/a", "no plain host name"),
    ("https://huggingface.co|evil/a", "no plain host name"),
    ("https://huggingface.co<evil/a", "no plain host name"),
    ('https://huggingface.co"/a', "no plain host name"),
    ("https://huggingface.co^/a", "no plain host name"),
    ("https://huggingface.co`/a", "no plain host name"),
    ("https://{huggingface.co}/a", "no plain host name"),
    ("https://huggingface/a", "no plain host name"),
    ("https://localhost/a", "no plain host name"),
    ("https://" + "a" * 64 + ".huggingface.co/", "no plain host name"),
    ("https://" + "a." * 130 + "co/", "no plain host name"),
    ("https://xn--huggingface-x.co/", "another alphabet"),
    ("https://cdn.xn--e1awd7f.co/", "another alphabet"),
    ("https://XN--e1awd7f.hf.co/", "another alphabet"),
    ("https://evil.example/a", "not a host"),
    ("https://evilhuggingface.co/a", "not a host"),
    ("https://evil-huggingface.co/a", "not a host"),
    ("https://huggingface.co.evil.example/a", "not a host"),
    ("https://huggingface.com/a", "not a host"),
    ("https://cdn-lfs.hf.co/a", "not a host"),
    ("https://api.huggingface.co/a", "not a host"),
    ("https://someone.hf.space/a", "not a host"),
    ("https://civitai.co/a", "not a host"),
    ("https://civitai.com.evil.example/a", "not a host"),
    ("https://image.civitai.com/a", "not a host"),
    ("https://b2.civitai.com/file/a", "not a host"),
    (f"https://{BUCKET}/model/1", "not a host"),
    ("https://s3.us-west-004.backblazeb2.com/civitai-modelfiles/a", "not a host"),
    ("https://models.s3.amazonaws.com/a", "not a host"),
    ("https://pub-1.r2.dev/a", "not a host"),
    ("https://metadata.google.internal/computeMetadata/v1/", "not a host"),
    # Paths that become other paths.
    ("https://huggingface.co/a/../b", "empty or dotted"),
    ("https://huggingface.co/..", "empty or dotted"),
    ("https://huggingface.co/./a", "empty or dotted"),
    ("https://huggingface.co/a/.", "empty or dotted"),
    ("https://huggingface.co//evil.example/a", "empty or dotted"),
    ("https://huggingface.co/a//b", "empty or dotted"),
    ("https://huggingface.co/a/%2e%2e/b", "hides"),
    ("https://huggingface.co/a/.%2E/b", "hides"),
    ("https://huggingface.co/a%2fb", "hides"),
    ("https://huggingface.co/a%2F..%2Fb", "hides"),
    ("https://huggingface.co/a%5Cb", "hides"),
    ("https://huggingface.co/a%00b", "hides"),
    ("https://huggingface.co/a%", "two digits"),
    ("https://huggingface.co/a%4", "two digits"),
    ("https://huggingface.co/a%zz", "two digits"),
    ("https://huggingface.co/a?b=%", "two digits"),
    # Secrets in the address.
    ("https://civitai.com/api/download/models/1?token=abcdef", "carries a secret"),
    ("https://civitai.com/api/download/models/1?type=Model&token=abcdef", "carries a secret"),
    ("https://civitai.com/api/download/models/1?TOKEN=abcdef", "carries a secret"),
    ("https://civitai.com/api/download/models/1?%74oken=abcdef", "carries a secret"),
    ("https://civitai.com/api/download/models/1?a=1;token=abcdef", "carries a secret"),
    ("https://civitai.com/api/download/models/1?token", "carries a secret"),
    ("https://civitai.com/api/download/models/1?+token=abcdef", "carries a secret"),
    ("https://civitai.com/api/download/models/1?api_key=abcdef", "carries a secret"),
    ("https://huggingface.co/a?access_token=abcdef", "carries a secret"),
    ("https://huggingface.co/a?auth=abcdef", "carries a secret"),
    ("https://huggingface.co/a?Authorization=abcdef", "carries a secret"),
    # Length.
    ("https://huggingface.co/" + "a" * MAX_TYPED_URL, "characters"),
)
"""(address that a user types, words of the reason)."""

ACCEPTED_URLS: tuple[tuple[str, str], ...] = (
    ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
    ("https://huggingface.co", "https://huggingface.co/"),
    ("HTTPS://HuggingFace.CO:443/A/B", "https://huggingface.co/A/B"),
    ("https://www.hf.co/a", "https://www.hf.co/a"),
    ("https://huggingface.co/a/b/resolve/main/x.safetensors?download=true#top", None),
    ("https://huggingface.co/a/model..v2.safetensors", "https://huggingface.co/a/model..v2.safetensors"),
    ("https://huggingface.co/a%20b/%C3%A9", "https://huggingface.co/a%20b/%C3%A9"),
    ("https://huggingface.co/a[b]{c}|^`<>\"", "https://huggingface.co/a%5Bb%5D%7Bc%7D%7C%5E%60%3C%3E%22"),
    ("https://huggingface.co/a@b:c", "https://huggingface.co/a@b:c"),
    ("https://huggingface.co?x=1", "https://huggingface.co/?x=1"),
    ("https://huggingface.co/a?x=//../\"", "https://huggingface.co/a?x=//../%22"),
    ("https://huggingface.co/a?tokens=3&authors=x", "https://huggingface.co/a?tokens=3&authors=x"),
    ("https://civitai.com/models/1?modelVersionId=2", "https://civitai.com/models/1?modelVersionId=2"),
    ("https://civitai.red/api/download/models/1", "https://civitai.red/api/download/models/1"),
    ("https://www.civitai.green/models/1", "https://www.civitai.green/models/1"),
)  # fmt: skip
"""(what a user types, what is opened; None: the same without its fragment)."""

HF_BASE = "https://huggingface.co/a/b/resolve/main/x.safetensors?download=true"
CIVITAI_BASE = "https://civitai.com/api/download/models/1"

REFUSED_REDIRECTS: tuple[tuple[str, str, str], ...] = (
    (HF_BASE, "https://evil.example/a", "not a host"),
    (HF_BASE, "https://someone.hf.space/a", "not a host"),
    (HF_BASE, "https://hf.space/a", "not a host"),
    (HF_BASE, "https://evilhf.co/a", "not a host"),
    (HF_BASE, "https://hf.co.evil.example/a", "not a host"),
    (HF_BASE, "https://cdn-lfs.hf.co.evil.example/a", "not a host"),
    (HF_BASE, "https://models.s3.amazonaws.com/a", "not a host"),
    (HF_BASE, "https://d111111abcdef8.cloudfront.net/a", "not a host"),
    (HF_BASE, "https://civitai.com/a", "not a host"),
    (HF_BASE, f"https://{BUCKET}/a", "not a host"),
    (HF_BASE, "https://b2.civitai.com/a", "not a host"),
    (HF_BASE, "//evil.example/a", "not a host"),
    (HF_BASE, "http://huggingface.co/a", "only https"),
    (HF_BASE, "http://127.0.0.1:8000/a", "only https"),
    (HF_BASE, "file:///etc/passwd", "only https"),
    (HF_BASE, "https://cdn-lfs.hf.co:8443/a", "port"),
    (HF_BASE, "https://user@cdn-lfs.hf.co/a", "user name"),
    (HF_BASE, "https://evil.example\\@cdn-lfs.hf.co/a", "backslash"),
    (HF_BASE, "/\\evil.example/a", "backslash"),
    (HF_BASE, "https://169.254.169.254/latest/meta-data/", "IP address"),
    (HF_BASE, "https://[::1]/a", "IP address"),
    (HF_BASE, "///evil.example/a", "no address to go to"),
    (HF_BASE, "https:evil", "no address to go to"),
    (HF_BASE, "https:/evil.example/a", "no address to go to"),
    (HF_BASE, "javascript:alert(1)", "no address to go to"),
    (HF_BASE, "", "no address to go to"),
    (HF_BASE, "../x", "empty or dotted"),
    (HF_BASE, "/a/../b", "empty or dotted"),
    (HF_BASE, "/a/../b?u=https://huggingface.co/c", "empty or dotted"),
    (HF_BASE, "/a//b", "empty or dotted"),
    (HF_BASE, "/a/%2e%2e/b", "hides"),
    (HF_BASE, "https://cdn-lfs.hf.co/a b", "space or control"),
    (HF_BASE, "https://cdn-lfs.hf.co/a\u00e9", "outside of ASCII"),
    (HF_BASE, "https://cdn-lfs.hf.co/" + "a" * MAX_REDIRECT_URL, "characters"),
    (CIVITAI_BASE, "https://huggingface.co/a", "not a host"),
    (CIVITAI_BASE, "https://other.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com/a", "not a host"),
    (CIVITAI_BASE, "https://civitai-.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com/a", "not a host"),
    (CIVITAI_BASE, "https://civitai-prod.00000000000000000000000000000000.r2.cloudflarestorage.com/a", "not a host"),
    (CIVITAI_BASE, f"https://x.{BUCKET}/a", "not a host"),
    (CIVITAI_BASE, f"https://{BUCKET}.evil.example/a", "not a host"),
    (CIVITAI_BASE, "https://r2.cloudflarestorage.com/a", "not a host"),
    (CIVITAI_BASE, "https://civitai-prod.r2.dev/a", "not a host"),
    (CIVITAI_BASE, "https://image.civitai.com/a", "not a host"),
    (CIVITAI_BASE, "https://s3.us-west-004.backblazeb2.com/other-bucket/a", "not a host"),
    (CIVITAI_BASE, "https://s3.us-west-004.backblazeb2.com/civitai-modelfiles-evil/a", "not a host"),
    (CIVITAI_BASE, "https://s3.us-west-004.backblazeb2.com/civitai-modelfiles/../other/a", "empty or dotted"),
    (CIVITAI_BASE, "https://s3.us-west-004.backblazeb2.com/civitai-modelfiles/%2e%2e/other/a", "hides"),
    (CIVITAI_BASE, "https://f004.backblazeb2.com/file/civitai-modelfiles/a", "not a host"),
)
"""(where we are, Location, words of the reason)."""

ACCEPTED_REDIRECTS: tuple[tuple[str, str, str], ...] = (
    (HF_BASE, "https://us.aws.cdn.hf.co/x?Signature=a~b_&Key-Pair-Id=K", "https://us.aws.cdn.hf.co/x?Signature=a~b_&Key-Pair-Id=K"),
    (HF_BASE, "//cdn-lfs.huggingface.co/x", "https://cdn-lfs.huggingface.co/x"),
    (HF_BASE, "/api/resolve-cache/x", "https://huggingface.co/api/resolve-cache/x"),
    (HF_BASE, "y.safetensors", "https://huggingface.co/a/b/resolve/main/y.safetensors"),
    (HF_BASE, "?download=false", "https://huggingface.co/a/b/resolve/main/x.safetensors?download=false"),
    (HF_BASE, "https://hf.co/a?token=x", "https://hf.co/a?token=x"),
    (CIVITAI_BASE, f"https://{BUCKET}/model/1?X-Amz-Signature=0f%2F", f"https://{BUCKET}/model/1?X-Amz-Signature=0f%2F"),
    (CIVITAI_BASE, "https://b2.civitai.com/file/civitai-modelfiles/model/x", "https://b2.civitai.com/file/civitai-modelfiles/model/x"),
    (CIVITAI_BASE, "https://civitai.red/login", "https://civitai.red/login"),
    (CIVITAI_BASE, "https://s3.us-west-004.backblazeb2.com/civitai-modelfiles/a", "https://s3.us-west-004.backblazeb2.com/civitai-modelfiles/a"),
)  # fmt: skip

REFUSED_MIRRORS: tuple[str, ...] = (
    *("http://mirror.example", "http://192.168.0.2:8080", "http://[fe80::1]", "http://localhost.example:80"),
    *("https://mirror.example/path", "https://user@mirror.example", "https://mirror.example?x", "mirror.example"),
    *("ftp://mirror.example", "https://mirror.example:0", "https://mirror.example:70000", "https://", "https://mirror"),
    *("https://huggingface.co", "https://HF.co", "https://xn--mirror.example", "https://mirror.example\\@evil.example"),
    *("http://127.1:80", "http://2130706433", "https://mirror.example:", " https://mirror.example"),
)


@pytest.mark.parametrize(("text", "reason"), REFUSED_URLS)
def test_typed_address_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RefusedUrl, match=r"(?i)is refused") as caught:
        parse_typed(text)
    assert reason.lower() in str(caught.value).lower()


@pytest.mark.parametrize(("text", "opened"), ACCEPTED_URLS)
def test_typed_address_is_rebuilt(text: str, opened: str | None) -> None:
    url = parse_typed(text)
    assert str(url) == (opened or text.partition("#")[0])
    assert parse_typed(str(url)) == url
    # What others would connect to is what we checked.
    assert urlsplit(str(url)).hostname == parse_url(str(url)).host == url.host


@pytest.mark.parametrize(("base", "location", "reason"), REFUSED_REDIRECTS)
def test_redirect_is_refused(base: str, location: str, reason: str) -> None:
    with pytest.raises(RefusedUrl) as caught:
        parse_redirect(location, parse_typed(base))
    assert reason.lower() in str(caught.value).lower()


@pytest.mark.parametrize(("base", "location", "goes_to"), ACCEPTED_REDIRECTS)
def test_redirect_is_followed(base: str, location: str, goes_to: str) -> None:
    url = parse_redirect(location, parse_typed(base))
    assert str(url) == goes_to
    assert url.service is parse_typed(base).service


@pytest.mark.parametrize("name", sorted(SECRET_PARAMETERS))
def test_every_secret_parameter_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(RefusedUrl, match="HF_TOKEN or CIVITAI_TOKEN") as caught:
        parse_typed(f"https://civitai.com/a?{name}=verysecretvalue")
    assert "verysecretvalue" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["https://user:verysecretvalue@evil.example/a", "https://evil.example/a?x=verysecretvalue", "x:verysecretvalue@y"],
)
def test_messages_show_no_query_and_no_password(text: str) -> None:
    with pytest.raises(RefusedUrl) as caught:
        parse_typed(text)
    assert "verysecretvalue" not in str(caught.value)


def test_only_exact_hosts_get_the_token() -> None:
    getting = {
        host for rule in HOST_RULES.values() for host in rule.typed if gets_token(parse_typed(f"https://{host}/"))
    }
    assert getting == {"huggingface.co", "hf.co", "civitai.com", "civitai.red", "civitai.green"}
    base = parse_typed(CIVITAI_BASE)
    for text in (f"https://{BUCKET}/x", "https://b2.civitai.com/x", "https://www.civitai.com/x"):
        assert not gets_token(parse_redirect(text, base))
    # An address that was put together by hand does not get it either.
    assert not gets_token(SafeUrl(Service.HUGGING_FACE, "http", "huggingface.co", 443, "/", ""))
    assert not gets_token(SafeUrl(Service.HUGGING_FACE, "https", "huggingface.co", 8443, "/", ""))
    assert not gets_token(SafeUrl(Service.CIVITAI, "https", "huggingface.co", 443, "/", ""))


def test_shown_address_has_no_query() -> None:
    url = parse_redirect("https://us.aws.cdn.hf.co/x?Signature=abc", parse_typed(HF_BASE))
    assert url.shown == "https://us.aws.cdn.hf.co/x"
    assert "abc" not in repr(url)


@pytest.mark.parametrize("text", REFUSED_MIRRORS)
def test_mirror_is_refused(text: str) -> None:
    with pytest.raises(RefusedUrl):
        parse_mirror(text, Service.HUGGING_FACE)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://mirror.example", Origin("https", "mirror.example", 443)),
        ("https://Mirror.Example:8443/", Origin("https", "mirror.example", 8443)),
        ("https://10.0.0.5:8443", Origin("https", "10.0.0.5", 8443)),
        ("http://127.0.0.1:8080", Origin("http", "127.0.0.1", 8080)),
        ("http://localhost", Origin("http", "localhost", 80)),
        ("http://[::1]:8080", Origin("http", "::1", 8080)),
    ],
)
def test_mirror_adds_its_own_origin_only(text: str, origin: Origin) -> None:
    mirror = parse_mirror(text, Service.HUGGING_FACE)
    assert mirror == origin
    mirrors = {Service.HUGGING_FACE: mirror}
    url = parse_typed(f"{text.rstrip('/')}/a/b", mirrors)
    assert (url.service, url.origin, url.path) == (Service.HUGGING_FACE, origin, "/a/b")
    assert not gets_token(url)
    other_port = f"{origin.scheme}://{'[::1]' if origin.host == '::1' else origin.host}:{origin.port + 1}/a"
    with pytest.raises(RefusedUrl):
        parse_typed(other_port, mirrors)
    with pytest.raises(RefusedUrl):
        parse_typed(f"{text.rstrip('/')}/a/../b", mirrors)


def test_mirror_of_one_hub_is_none_of_the_other() -> None:
    mirrors = {Service.CIVITAI: parse_mirror("https://mirror.example", Service.CIVITAI)}
    with pytest.raises(RefusedUrl, match="not a host that Hugging Face"):
        parse_redirect("https://mirror.example/a", parse_typed(HF_BASE), mirrors)
    assert parse_redirect("https://mirror.example/a", parse_typed(CIVITAI_BASE), mirrors).host == "mirror.example"


def test_encrypted_download_does_not_go_on_unencrypted() -> None:
    mirrors = {Service.HUGGING_FACE: parse_mirror("http://127.0.0.1:8080", Service.HUGGING_FACE)}
    with pytest.raises(RefusedUrl, match="from https to http"):
        parse_redirect("http://127.0.0.1:8080/a", parse_typed(HF_BASE), mirrors)
    base = parse_typed("http://127.0.0.1:8080/a", mirrors)
    assert parse_redirect("https://cdn-lfs.hf.co/x", base, mirrors).scheme == "https"


def test_api_addresses_are_quoted_and_checked() -> None:
    network = Network()
    url = network.url(Service.HUGGING_FACE, "/api/models/a/b c\u00e9?#%2f", {"q": "x y&z", "full": "true"})
    assert str(url) == "https://huggingface.co/api/models/a/b%20c%C3%A9%3F%23%252f?q=x+y%26z&full=true"
    assert network.url(Service.CIVITAI, "/api/v1/models/1", host="civitai.red").host == "civitai.red"
    mirrored = Network(mirrors={Service.HUGGING_FACE: "http://127.0.0.1:8080"})
    assert str(mirrored.url(Service.HUGGING_FACE, "/api")) == "http://127.0.0.1:8080/api"
    for path in ("api", "", "/a/../b", "/a//b", "/a/./b", "/", "/a/"):
        with pytest.raises(RefusedUrl):
            network.url(Service.HUGGING_FACE, path)
    with pytest.raises(RefusedUrl, match="not a host of Civitai"):
        network.url(Service.CIVITAI, "/a", host="huggingface.co")
    with pytest.raises(RefusedUrl, match="secret"):
        build(Origin("https", "huggingface.co", 443), Service.HUGGING_FACE, "/a", {"token": "x"}, {})


@pytest.mark.parametrize(
    "text",
    [
        "https://evil.example\\@huggingface.co/",  # urlsplit reads huggingface.co, urllib3 evil.example
        "https://huggingface.co%2eevil.example/",
        "https://huggingface.co@evil.example/",
        "https://evil.example/",
        "https://huggingface.co:8443/",
        "https://[::1/",
    ],
)
def test_parsers_that_disagree_are_a_refusal_of_their_own(text: str) -> None:
    """The grammar refuses these earlier; should it ever miss one, this second look is what remains."""
    with pytest.raises(RefusedUrl, match=r"disagree|cannot be parsed"):
        _check_parsers(text, Origin("https", "huggingface.co", 443))
