"""Who owns which name: the first login that uses it, for as long as it goes on, in bounded memory."""

from __future__ import annotations

import pytest

from security.errors import RefusedRequest
from security.ownership import Kind, Ownership, paths_in
from security.policy import MAX_NAMES_PER_LOGIN


def status(claim: object) -> int:
    with pytest.raises(RefusedRequest) as refusal:
        claim()  # type: ignore[operator]
    return refusal.value.status


def test_the_first_login_owns_a_name_and_kinds_do_not_mix() -> None:
    owned = Ownership()
    owned.claim("a", Kind.SESSION, "s1")
    owned.claim("a", Kind.SESSION, "s1")
    assert status(lambda: owned.claim("b", Kind.SESSION, "s1")) == 403
    owned.claim("b", Kind.UPLOAD, "s1")
    owned.add("a", Kind.FILE, ["/x", "/y"])
    owned.require("a", Kind.FILE, ["/x", "/y"])
    for login, paths in (("b", ["/x"]), ("a", ["/x", "/z"]), ("", ["/x"]), ("a", [None]), ("a", [["/x"]])):
        assert status(lambda login=login, paths=paths: owned.require(login, Kind.FILE, paths)) == 403


def test_names_end_with_their_login() -> None:
    owned = Ownership()
    owned.claim("a", Kind.SESSION, "s1")
    owned.add("a", Kind.FILE, ["/both"])
    owned.add("b", Kind.FILE, ["/both"])
    owned.forget("a")
    owned.forget("never there")
    owned.claim("b", Kind.SESSION, "s1")
    owned.require("b", Kind.FILE, ["/both"])
    assert status(lambda: owned.require("a", Kind.FILE, ["/both"])) == 403


def test_memory_is_bounded_and_what_is_used_stays() -> None:
    owned = Ownership()
    for number in range(MAX_NAMES_PER_LOGIN + 5):
        owned.claim("a", Kind.SESSION, f"s{number}")
        assert status(lambda: owned.claim("b", Kind.SESSION, "s0")) == 403
        owned.claim("a", Kind.SESSION, "s0")
    assert len(owned._names["a", Kind.SESSION]) == MAX_NAMES_PER_LOGIN == len(owned._owners)
    assert status(lambda: owned.claim("b", Kind.SESSION, "s0")) == 403
    owned.claim("b", Kind.SESSION, "s1")  # of all the names the one not used for longest was given up
    owned.forget("a")
    owned.forget("b")
    assert not owned._names
    assert not owned._owners


def test_a_file_in_use_is_not_forgotten() -> None:
    owned = Ownership()
    for number in range(MAX_NAMES_PER_LOGIN + 5):
        owned.add("a", Kind.FILE, [f"/{number}"])
        owned.require("a", Kind.FILE, ["/0"])
    assert status(lambda: owned.require("a", Kind.FILE, ["/1"])) == 403


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "x" * 65, "a\n", 7, None, ["a"], {"a": 1}])
def test_what_is_no_name_is_refused(name: object) -> None:
    owned = Ownership()
    assert status(lambda: owned.claim("a", Kind.SESSION, name)) == 400


def test_every_path_among_inputs_is_found() -> None:
    data = [
        1,
        "path",
        {"path": "/a", "url": "x"},
        [[{"x": {"path": 5, "deeper": [{"path": "/b"}]}}]],
        {"paths": "/c"},
        None,
    ]
    assert sorted(map(str, paths_in(data))) == ["/a", "/b", "5"]
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert not list(paths_in(deep))
