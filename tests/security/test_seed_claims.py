"""The entry to the security claims: 60 numbers, one check for each, and SECURITY.md that mentions every one of them.

The claims come from the policy that this project started from. The checks are the functions test_sNN_... in the three
files of CLAIM_FILES; SECURITY.md marks the sentence that makes a claim with its number and links the file that proves it.
Here is seen that none gets lost: a sentence without a check, a check without a sentence, a link to a test that is gone.
"""

from __future__ import annotations

import ast
import re

import pytest

from tests.security import pages

NUMBERS = range(1, 61)
CLAIM_FILES = ("test_claims_practices.py", "test_claims_downloads.py", "test_claims_people.py")
MARK = re.compile(r"\[S(\d+)\]\(([^)]*)\)")


def test_functions(path: str) -> list[ast.FunctionDef]:
    """The tests of a file."""
    tree = ast.parse(pages.raw(path))
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


test_functions.__test__ = False  # type: ignore[attr-defined]


def checks() -> dict[int, list[str]]:
    """The names of the checks by their number."""
    found: dict[int, list[str]] = {}
    for name in CLAIM_FILES:
        for function in test_functions(f"tests/security/{name}"):
            numbered = re.match(r"test_s(\d\d)_", function.name)
            assert numbered, f"{name}: {function.name} has no number"
            found.setdefault(int(numbered[1]), []).append(f"{name}::{function.name}")
    return found


def marks() -> list[tuple[int, str]]:
    """Every mark of SECURITY.md: number and target. The one in the introduction explains the marks and is none itself."""
    explained, _, rest = pages.raw("SECURITY.md").partition("\n## ")
    assert len(MARK.findall(explained)) == 1
    return [(int(number), target) for number, target in MARK.findall(rest)]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_claim_has_one_check(number: int) -> None:
    assert len(checks().get(number, [])) == 1, f"S{number}: {checks().get(number)}"


def test_there_is_no_check_without_a_claim() -> None:
    assert set(checks()) == set(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_claim_is_marked_once_in_the_policy(number: int) -> None:
    assert [one for one, _ in marks() if one == number] == [number]


def test_every_mark_is_a_claim_and_leads_to_tests() -> None:
    for number, target in marks():
        assert number in NUMBERS
        assert (pages.ROOT / target).is_file() and re.fullmatch(r"tests/[\w/]*test_\w+\.py", target), target
        assert len(test_functions(target)) >= 1, f"{target} has no test"


def test_each_check_checks_something() -> None:
    """A body without an assertion, or with one that cannot fail, would make the number a decoration."""
    for name in CLAIM_FILES:
        for function in test_functions(f"tests/security/{name}"):
            asserted = [node for node in ast.walk(function) if isinstance(node, ast.Assert)]
            raised = [node for node in ast.walk(function) if isinstance(node, ast.Attribute) and node.attr == "raises"]
            constant = [node for node in asserted if isinstance(node.test, ast.Constant)]
            assert (asserted or raised) and not constant, f"{name}::{function.name}"


def test_every_bullet_under_what_is_protected_has_a_mark() -> None:
    """But for those that go beyond the sixty claims, which are listed here and link to their tests."""
    protected = pages.raw("SECURITY.md").split("\n## What is protected\n")[1].split("\n## ")[0]
    bullets = re.split(r"\n- ", protected)[1:]
    unmarked = {" ".join(bullet.split())[:30]: bullet for bullet in bullets if not MARK.search(bullet)}
    assert list(unmarked) == [
        "Networks for pictures (taggers",
        "Search patterns that a visitor",
        "Publishing a dataset is the on",
        "LoRA files of others are looke",
        "On several GPUs or processes e",
        "Wrong passwords make everybody",
        "Requests from other web sites ",
    ]
    for begins, bullet in unmarked.items():
        linked = re.search(r"\[Tests\]\(([^)]*)\)", bullet)
        assert linked and (pages.ROOT / linked[1]).is_file(), begins


def test_commands_and_variables_that_the_policy_names_exist() -> None:
    from ui.cli import COMMANDS

    text = pages.raw("SECURITY.md")
    named = set(re.findall(r"`python launch\.py (\w+)", text))
    assert named <= {*COMMANDS, "test"} and {"verify", "sign", "sbom", "doctor"} <= named
    places = ("trainer/models/checks.py", "ui/cli.py", "ui/cli_processes.py")
    code = "\n".join((pages.ROOT / name).read_text(encoding="utf-8") for name in places)
    for variable in set(re.findall(r"`(SAFELIGHT_[A-Z_]+)`", text)):
        assert variable in code
    for flag in set(re.findall(r"`(--[a-z-]+)`", text)):
        assert f'"{flag}"' in code, flag


def test_numbers_that_the_policy_names_are_those_of_the_code() -> None:
    from security import policy

    text = pages.plain()
    assert (
        f"at most {policy.MAX_IMAGE_PIXELS // 10**6} megapixels and {policy.MAX_IMAGE_BYTES // policy.MIB} MiB" in text
    )
    assert f"at most {policy.MAX_MODEL_BYTES // 2**30} GiB a file" in text
    assert f"the last {policy.FREE_DISK_RESERVE_BYTES // 2**30} GiB of the disk" in text
    assert f"after {policy.PART_FILE_DAYS} days" in text
    assert (
        f"ends after {policy.SESSION_SECONDS // 3600} hours, or after {policy.SESSION_IDLE_SECONDS // 3600} hours"
        in text
    )
    assert f"a share link after {policy.SHARE_HOURS} hours" in text
    assert f"shut for {policy.LOGIN_LOCK_SECONDS // 60} minutes" in text and policy.MAX_LOGIN_FAILURES == 10
