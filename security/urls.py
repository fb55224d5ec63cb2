"""Which addresses the program opens: a strict grammar, a list of hosts, and addresses rebuilt from checked parts.

Parsers disagree about odd addresses (which host is in `https://a\\\\@b/`?), so whatever two of them could read differently
is refused before any of them sees it, and only the rebuilt text is ever used.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from security.errors import RefusedUrl
from security.policy import HOST_RULES, MAX_REDIRECT_URL, MAX_TYPED_URL, SECRET_PARAMETERS, HostRule, Service

HTTPS_PORT = 443
_ORIGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)(?:#.*)?")
_HOST = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BAD_PATH_ESCAPE = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)
_KEPT_IN_PATH = "/%:@!$&'()*+,;=-._~"
_KEPT_IN_QUERY = _KEPT_IN_PATH + "?"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a mirror of a hub answers. `host` may be an IP address here, and `port` any."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host, and port unless it is the scheme's own, as in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


Mirrors = Mapping[Service, Origin]


@dataclass(frozen=True, slots=True)
class SafeUrl:
    """An address that passed the checks, in parts. `str()` rebuilds the whole; `query` is without the "?".

    The query may be a signature, so `repr` leaves it out.
    """

    service: Service
    scheme: str
    host: str
    port: int
    path: str
    query: str = field(repr=False)

    @property
    def origin(self) -> Origin:
        """Scheme, host and port."""
        return Origin(self.scheme, self.host, self.port)

    @property
    def target(self) -> str:
        """Path and query, as in the first line of a request."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def shown(self) -> str:
        """The address for messages, logs and files: without the query, which may be a signature."""
        return f"{self.origin}{self.path}"

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"


def parse_typed(text: str, mirrors: Mirrors | None = None) -> SafeUrl:
    """Checks an address that a user typed or that came with the program. Raises RefusedUrl with the reason."""
    _check_characters(text, MAX_TYPED_URL)
    url = _parse(text, mirrors or {}, typed=True)
    for part in re.split("[&;]", url.query):
        name = unquote(part.partition("=")[0].replace("+", " ")).strip().lower()
        if name in SECRET_PARAMETERS:
            raise _refused(
                text,
                f"it carries a secret in the parameter {name!r}",
                "Remove it, and give the token in Settings or as HF_TOKEN or CIVITAI_TOKEN in the environment",
            )
    return url


def parse_redirect(location: str, base: SafeUrl, mirrors: Mirrors | None = None) -> SafeUrl:
    """Checks where an answer from `base` sends us: an absolute or relative address, of the same hub only.

    Raises RefusedUrl with the reason; https never turns into http.
    """
    _check_characters(location, MAX_REDIRECT_URL)
    start = re.split("[?#]", location)[0]
    if not _ORIGIN.match(start) and (not location or start.startswith("///") or ":" in start.split("/")[0]):
        raise _refused(location, "it is no address to go to", "The download was not followed there")
    _check_path(location, re.sub("^([^/]*:)?//", "", start))  # before urljoin, which would resolve ".."
    own = {base.service: mirrors[base.service]} if mirrors and base.service in mirrors else {}
    absolute = location if _ORIGIN.fullmatch(location) else urljoin(str(base), location)
    url = _parse(absolute, own, typed=False, only=base.service)
    if base.scheme == "https" and url.scheme != "https":
        raise _refused(location, "it leads from https to http", "Nothing is sent unencrypted")
    return url


def build(origin: Origin, service: Service, path: str, query: Mapping[str, str] | None, mirrors: Mirrors) -> SafeUrl:
    """An address on a hub's own host. `path` starts with "/" and is quoted here; ".." and empty parts are refused."""
    if not path.startswith("/") or any(part in ("", ".", "..") for part in path[1:].split("/")):
        raise RefusedUrl(f"The path {path[:120]!r} of {service} is not usable. Check the name of the model and file.")
    text = f"{origin}{quote(path, safe='/:@!$&()*+,;=-._~')}"
    return parse_typed(f"{text}?{urlencode(query)}" if query else text, mirrors)


def parse_mirror(text: str, service: Service) -> Origin:
    """Checks the address of a mirror that the user named: https anywhere, http on this machine only, and no path.

    Raises RefusedUrl.
    """
    _check_characters(text, MAX_TYPED_URL)
    match = re.fullmatch(r"(?i:(https?))://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?/?", text)
    if match is None:
        raise _refused(
            text, "it is not the address of a mirror", "Write https://HOST or https://HOST:PORT, without a path"
        )
    scheme, host = match[1].lower(), match[2].lower().strip("[]")
    port = int(match[3] or {"https": 443, "http": 80}[scheme])
    if not 1 <= port <= 65535:
        raise _refused(text, f"there is no port {port}", "Use one from 1 to 65535")
    literal = _address(host)
    if literal is None and host != "localhost":
        _check_host(text, host)
    here = host == "localhost" or (literal is not None and literal.is_loopback)
    if scheme == "http" and not here:
        raise _refused(text, "http is not encrypted", "A mirror on another machine needs https")
    if scheme == "https" and host in HOST_RULES[service].typed:
        raise _refused(text, f"this is {service} itself, not a mirror", "Leave the mirror out")
    return Origin(scheme, str(literal) if literal else host, port)


def gets_token(url: SafeUrl) -> bool:
    """True for the hosts that a hub's token belongs to. Mirrors, CDNs and signed addresses are none."""
    return url.scheme == "https" and url.port == HTTPS_PORT and url.host in HOST_RULES[url.service].credentials


def _parse(text: str, mirrors: Mirrors, *, typed: bool, only: Service | None = None) -> SafeUrl:
    """The checks that typed addresses and redirects share. `only`: the one hub it may belong to."""
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise _refused(text, "it is no whole address", "Write it from https:// on")
    scheme, authority = match["scheme"].lower(), match["authority"]
    path, _, query = match["rest"].partition("?")
    path = path or "/"
    _check_path(text, path)
    if _BAD_ESCAPE.search(query):
        raise _refused(text, "it has a % that is not followed by two digits", "Copy the address again")
    service, origin = _mirror_of(f"{scheme}://{authority}", mirrors) or (None, None)
    if service is None or origin is None:
        origin = _hub_origin(text, scheme, authority)
        service = _service_of(text, origin.host, path, typed=typed, only=only)
    _check_parsers(text, origin)
    return SafeUrl(
        service=service,
        scheme=origin.scheme,
        host=origin.host,
        port=origin.port,
        path=quote(path, safe=_KEPT_IN_PATH),
        query=quote(query, safe=_KEPT_IN_QUERY),
    )


def _check_characters(text: str, longest: int) -> None:
    """Refuses what parsers strip, fold or split differently, before any of them sees the text."""
    if len(text) > longest:
        raise _refused(text, f"it has {len(text)} characters and {longest} are allowed", "Copy the address again")
    bad = next((sign for sign in text if not 0x21 <= ord(sign) <= 0x7E), None)
    if bad is not None:
        what = "a space or control character" if ord(bad) < 0x80 else "a character outside of ASCII"
        raise _refused(
            text, f"it has {what} (U+{ord(bad):04X})", "Copy the address again from the browser's address bar"
        )
    if "\\" in text:
        raise _refused(text, "it has a backslash", "Addresses have forward slashes only")


def _check_path(text: str, path: str) -> None:
    """Refuses paths that a server or a library would shorten to another one."""
    if "//" in path or any(part in (".", "..") for part in path.split("/")):
        raise _refused(text, "its path has an empty or dotted part", "Copy the address again")
    if _BAD_PATH_ESCAPE.search(path):
        raise _refused(text, "its path hides a dot, slash or NUL behind a % sign", "Copy the address again")
    if _BAD_ESCAPE.search(path):
        raise _refused(text, "it has a % that is not followed by two digits", "Copy the address again")


def _hub_origin(text: str, scheme: str, authority: str) -> Origin:
    """The origin of an address that is on no mirror: https, a plain name, port 443."""
    if scheme != "https":
        raise _refused(text, f"it starts with {scheme}:", "Only https:// addresses are opened")
    if not authority:
        raise _refused(text, "it names no host", "Write it from https:// on")
    if "@" in authority:
        raise _refused(text, "it has a user name or password in front of the host", "Remove everything up to the @")
    if "%" in authority:
        raise _refused(text, "its host has a % sign", "Write the plain name")
    if "[" in authority or "]" in authority:
        raise _refused(text, "its host is an IP address", "Only names of the hubs are opened")
    host, colon, port = authority.lower().partition(":")
    if colon and port != str(HTTPS_PORT):
        raise _refused(text, f"it names the port {port!r}", "Leave the port out")
    _check_host(text, host)
    return Origin("https", host, HTTPS_PORT)


def _check_host(text: str, host: str) -> None:
    """Refuses everything but a plain name of two or more labels."""
    labels = host.split(".")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        raise _refused(text, "its host is an IP address", "Only names of the hubs are opened")
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise _refused(text, f"{host[:80]!r} is no plain host name", "Check the spelling")
    if any(label.startswith("xn--") for label in labels):
        raise _refused(text, f"{host[:80]!r} is written in another alphabet", "No hub has such a name")


def _check_parsers(text: str, origin: Origin) -> None:
    """Two other parsers must read the rebuilt origin, and the given text, as we did."""
    try:
        readings = [
            (split.scheme, (split.hostname or "").strip("[]"), split.port or origin.port)
            for split in (urlsplit(text), urlsplit(str(origin)))
        ]
        readings += [
            (parsed.scheme or "", (parsed.host or "").strip("[]"), parsed.port or origin.port)
            for parsed in (parse_url(text), parse_url(str(origin)))
        ]
    except (ValueError, LocationParseError):
        raise _refused(text, "it cannot be parsed", "Copy the address again") from None
    if any(reading != (origin.scheme, origin.host, origin.port) for reading in readings):
        raise _refused(text, "programs disagree about its host", "Copy the address again")


def _service_of(text: str, host: str, path: str, *, typed: bool, only: Service | None) -> Service:
    """The hub that a host belongs to, by the column for typed addresses or the one for redirects."""
    for service, rule in HOST_RULES.items():
        if (only is None or service is only) and (
            host in rule.typed or (not typed and _may_redirect(rule, host, path))
        ):
            return service
    if not typed:
        raise _refused(text, f"{host} is not a host that {only or 'a hub'} keeps files on", "It was not followed there")
    known = " and ".join(sorted(name for rule in HOST_RULES.values() for name in rule.credentials))
    raise _refused(text, f"{host} is not a host that models are fetched from", f"The known ones are {known}")


def _may_redirect(rule: HostRule, host: str, path: str) -> bool:
    """True if an answer may send us to `host`."""
    return (
        host in rule.redirects
        or host.endswith(rule.suffixes)
        or any(pattern.fullmatch(host) for pattern in rule.patterns)
        or any(host == name and path.startswith(prefix) for name, prefix in rule.paths)
    )


def _mirror_of(start: str, mirrors: Mirrors) -> tuple[Service, Origin] | None:
    """The mirror whose address this is, spelled as its rebuilt form or with the scheme's own port."""
    for service, origin in mirrors.items():
        bare = f"[{origin.host}]" if ":" in origin.host else origin.host
        if start.lower() in (str(origin), f"{origin.scheme}://{bare}:{origin.port}"):
            return service, origin
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _refused(text: str, fault: str, advice: str) -> RefusedUrl:
    """The error to raise. The address is shown without its query and user part, which may be secrets."""
    shown = re.split("[?#]", text)[0]
    shown = re.sub(r"[^/]*@", "...@", shown)[:120].encode("ascii", "backslashreplace").decode()
    return RefusedUrl(f"The address {shown!r} is refused: {fault}. {advice}.")
