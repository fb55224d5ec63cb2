"""What a user may type, and what is said to everything else."""

from __future__ import annotations

import pytest

from security.errors import RefusedUrl
from security.urls import parse_typed
from trainer.models.catalog import catalog
from trainer.models.sources import CivitaiSource, HuggingFaceSource, UnknownSource, parse_source

COMMIT = "5ec9c05863255568f1b59753e3838107befaa712"
HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("owner/name", "owner/name", "main", ""),
        ("  owner/name\n", "owner/name", "main", ""),
        (f"owner/name@{COMMIT}", "owner/name", COMMIT, ""),
        ("owner/name@v1.0", "owner/name", "v1.0", ""),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3", ""),
        ("owner/name/sub/model.safetensors", "owner/name", "main", "sub/model.safetensors"),
        ("owner/name@v2/model.safetensors", "owner/name", "v2", "model.safetensors"),
        (f"{HUB}/owner/name", "owner/name", "main", ""),
        (f"{HUB}/owner/name/", "owner/name", "main", ""),
        ("huggingface.co/owner/name", "owner/name", "main", ""),
        ("https://hf.co/owner/name", "owner/name", "main", ""),
        (f"{HUB}/owner/name?not-for-all-audiences=true", "owner/name", "main", ""),
        (f"{HUB}/owner/name#how-to", "owner/name", "main", ""),
        (f"{HUB}/owner/name/tree/{COMMIT}", "owner/name", COMMIT, ""),
        (f"{HUB}/owner/name/tree/main/unet", "owner/name", "main", ""),
        (f"{HUB}/owner/name/blob/main/a%20b.safetensors", "owner/name", "main", "a b.safetensors"),
        (f"{HUB}/owner/name/blob/refs/pr/3/x.safetensors", "owner/name", "refs/pr/3", "x.safetensors"),
        (f"{HUB}/owner/name/resolve/main/dir/x.ckpt?download=true", "owner/name", "main", "dir/x.ckpt"),
        (f"{HUB}/owner/name/discussions/4", "owner/name", "main", ""),
    ],
)
def test_hugging_face_forms(text: str, repo: str, revision: str, file: str) -> None:
    asked = parse_source(text, parse_typed)
    assert (asked.source, asked.row) == (HuggingFaceSource(repo, revision, file), None)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("https://civitai.com/models/257749", CivitaiSource(257749)),
        ("https://civitai.com/models/257749/pony-diffusion-v6-xl", CivitaiSource(257749)),
        ("https://civitai.com/models/257749?modelVersionId=290640", CivitaiSource(257749, 290640)),
        ("civitai.com/models/257749/x?modelVersionId=290640", CivitaiSource(257749, 290640)),
        ("https://civitai.red/models/1?modelVersionId=2", CivitaiSource(1, 2, host="civitai.red")),
        ("https://www.civitai.green/models/1", CivitaiSource(1, host="civitai.green")),
        ("https://civitai.com/api/download/models/290640", CivitaiSource(None, 290640)),
        (
            "https://civitai.com/api/download/models/290640?type=Model&format=SafeTensor&fileId=7",
            CivitaiSource(None, 290640, 7),
        ),
        ("https://civitai.com/api/v1/model-versions/290640", CivitaiSource(None, 290640)),
        ("https://civitai.com/api/v1/models/257749", CivitaiSource(257749)),
        ("https://civitai.com/model-versions/290640", CivitaiSource(None, 290640)),
        ("civitai:290640", CivitaiSource(None, 290640)),
        ("CIVITAI:257749@290640", CivitaiSource(257749, 290640)),
        ("urn:air:sdxl:checkpoint:civitai:257749@290640", CivitaiSource(257749, 290640)),
        ("air:sdxl:checkpoint:civitai:257749@290640+12.safetensors", CivitaiSource(257749, 290640, 12)),
        ("sd1:model:civitai:5", CivitaiSource(5)),
    ],
)
def test_civitai_forms(text: str, source: CivitaiSource) -> None:
    assert parse_source(text, parse_typed).source == source


@pytest.mark.parametrize("row", catalog(), ids=lambda row: row.name)
def test_a_name_of_the_catalog_is_its_pinned_file(row: object) -> None:
    asked = parse_source(row.name, parse_typed)
    assert asked.row is row
    assert isinstance(asked.source, HuggingFaceSource)
    assert (asked.source.file, asked.source.revision) == (row.file, row.revision or "main")
    pasted = parse_source(f"{HUB}/{row.source}/blob/main/{row.file}", parse_typed)
    assert (pasted.row, pasted.source) == (row, asked.source), (
        "the page of the same file is held against the catalog too"
    )
    assert parse_source(f"{row.source}", parse_typed).row is None, "the whole repository is not that file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Nothing is typed in"),
        ("x" * 3000, "3000 characters"),
        ("stable diffusion", "names no model"),
        ("sdxl-base", "Did you mean sdxl-base-1.0"),
        ("257749", "civitai:257749"),
        ("/home/me/model.safetensors", "a path on this machine"),
        ("~/model.safetensors", "a path on this machine"),
        (r"C:\models\x.safetensors", "a path on this machine"),
        ("urn:air:sdxl:lora:civitai:1@2", "names a lora"),
        ("urn:air:sdxl:checkpoint:huggingface:1@2", "names the service"),
        ("owner/name@a..b", "not a revision"),
        ("owner/name@-x y", "not a revision"),
        ("owner/name/../x", "not a file of a repository"),
        ("../name", "a path on this machine"),
        ("owner/na me", "names no model"),
        (f"{HUB}", "start page"),
        (f"{HUB}/owner", "owner's page"),
        (f"{HUB}/datasets/owner/name", "under 'datasets'"),
        (f"{HUB}/spaces/owner/name", "under 'spaces'"),
        (f"{HUB}/owner/name/settings", "no file or folder"),
        (f"{HUB}/owner/name/blob/main", "names no file"),
        ("https://civitai.com/images/12345", "under 'images'"),
        ("https://civitai.com/user/someone", "under 'user'"),
        ("https://civitai.com/models/pony", "not a number"),
        ("https://civitai.com/something", "names no model"),
    ],
)
def test_what_names_no_model_is_told_what_would(text: str, said: str) -> None:
    with pytest.raises(UnknownSource, match=said):
        parse_source(text, parse_typed)


@pytest.mark.parametrize(
    "text",
    [
        "http://huggingface.co/owner/name",
        "https://evil.example/owner/name",
        "https://evil.example\\@huggingface.co/owner/name",
        "https://huggingface.co%2eevil.example/owner/name",
        "https://huggingface.co@evil.example/owner/name",
        "https://owner.hf.space/name",
        "https://civitai.com/models/1?token=0123456789abcdef",
        "https://huggingface.co/owner/name/resolve/main/%2e%2e/x",
        "//huggingface.co/owner/name",
        "file:///etc/passwd",
        "ftp://civitai.com/models/1",
    ],
)
def test_addresses_are_judged_by_the_door(text: str) -> None:
    with pytest.raises(RefusedUrl):
        parse_source(text, parse_typed)


def test_a_refused_secret_is_not_repeated() -> None:
    with pytest.raises(RefusedUrl) as refused:
        parse_source("https://civitai.com/models/1?token=0123456789abcdef", parse_typed)
    assert "0123456789abcdef" not in str(refused.value)
