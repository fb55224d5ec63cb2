"""Fetches a dataset by its address and brings it in, shard by shard, so that a large one never lies here twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from security.errors import FailedDownload, Interrupted, RefusedFile, SafelightError
from security.fetch import Fetched, Wanted, fetch
from security.net import Network
from security.parquet import ParquetRow, ParquetTable, look_into, take_group
from security.policy import (
    MAX_ARCHIVE_BYTES,
    MAX_IMAGE_BYTES,
    MAX_PARQUET_BYTES,
    PART_FILE_DAYS,
    Service,
)
from security.roots import Root
from security.secrets import Secret
from security.urls import SafeUrl
from trainer.dataset.addresses import HubPlan, plan_address
from trainer.dataset.importing import check_name, import_bundles
from trainer.dataset.incoming import (
    CAPTION_COLUMNS,
    MAX_TABLE_BYTES,
    NOT_ALONG,
    PICTURE_SUFFIXES,
    Bundle,
    Incoming,
    Skipped,
    archive_bundle,
    sorted_out,
)
from trainer.dataset.studio import Studio
from trainer.models.huggingface import RepoFile
from trainer.models.text import gigabytes
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

FETCHED_FOLDER = "imports"
NUM_CONNECTIONS = 4
"""Small files are fetched beside each other: most of their time is waiting."""
DEFAULT_MOST = 2000
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture", "photo")


@dataclass(frozen=True)
class AddressOptions:
    """`most`: pictures to take at most. `column`: of the captions in Parquet files; "" finds it by its name."""

    most: int = DEFAULT_MOST
    column: str = ""


def import_address(
    studio: Studio,
    network: Network,
    token: Secret | None,
    name: str,
    text: str,
    options: AddressOptions,
    control: TaskControl,
) -> str:
    """Fetches what lies at an address and brings it in. Returns what came in, in a sentence.

    What has come of a transfer that breaks or is cancelled stays for the next time. Raises SafelightError: what was
    refused or failed, and the way out.
    """
    check_name(name)
    control.progress(0, 0, "Asking what is there")
    plan = plan_address(network, token, text)
    if options.most < 1:
        raise SafelightError(f"At most {options.most} pictures were asked for. Give a number from 1 on.")
    with _kept_folder(studio.workspace, plan.source) as parts, studio.staging() as staging:
        source = _Source(network, token, plan, options, control, parts, staging)
        message = import_bundles(studio, name, f"Import {plan.title}", source.bundles(), control, source.expected())
        if not control.cancelled():
            Root(studio.workspace.cache_dir).remove_tree(parts)
    return message


@contextmanager
def _kept_folder(workspace: Workspace, source: str) -> Iterator[Path]:
    """Where the parts of a transfer lie, the same at the next attempt. Sweeps those nobody went on with."""
    root = Root(workspace.cache_dir)
    folder = root.child(FETCHED_FOLDER)
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in list(folder.iterdir()):
        if time.time() - left.stat().st_mtime > PART_FILE_DAYS * 24 * 3600:
            root.remove_tree(left)
    parts = root.child(FETCHED_FOLDER, hashlib.sha256(source.encode()).hexdigest()[:32])
    parts.mkdir(mode=0o700, exist_ok=True)
    yield parts


class _Source:
    """A plan that is being fetched."""

    def __init__(
        self,
        network: Network,
        token: Secret | None,
        plan: HubPlan,
        options: AddressOptions,
        control: TaskControl,
        parts: Path,
        staging: Path,
    ) -> None:
        self._network, self._token = network, token
        self._plan, self._options, self._control = plan, options, control
        self._parts, self._staging = parts, staging
        self._left = options.most

    def bundles(self) -> Iterator[Bundle]:
        """What is there, piece by piece."""
        ways: dict[str, Callable[[], Iterator[Bundle]]] = {
            "parquet": self._from_parquet,
            "pictures": self._from_pictures,
            "archives": self._from_archives,
        }
        return ways[self._plan.kind]()

    def expected(self) -> int:
        """How many pictures come, as far as that is known now."""
        pictures = [file for file in self._plan.files if file.path.lower().endswith(PICTURE_SUFFIXES)]
        return min(len(pictures), self._options.most) if self._plan.kind == "pictures" else 0

    # ---- pictures as files ----

    def _from_pictures(self) -> Iterator[Bundle]:
        pictures = [file for file in self._plan.files if file.path.lower().endswith(PICTURE_SUFFIXES)]
        taken = pictures[: self._options.most]
        stems = {file.path.rpartition(".")[0] for file in taken} | {file.path for file in taken}
        beside = [
            file
            for file in self._plan.files
            if file not in pictures
            and (file.path.rpartition(".")[0] in stems or _limit_of(file.path) == MAX_TABLE_BYTES)
        ]
        wanted = [*beside, *taken]
        files: dict[str, Path] = {}
        skipped: list[Skipped] = []
        with ThreadPoolExecutor(NUM_CONNECTIONS, "safelight-fetch") as pool:
            for file, came in zip(wanted, pool.map(self._fetch_small, wanted), strict=True):
                if isinstance(came, Path):
                    files[file.path] = came
                else:
                    skipped.append((file.path, came))
                self._control.progress(len(files) + len(skipped), len(wanted), "Fetching")
        bundle = sorted_out(files, skipped)
        if len(taken) < len(pictures):  # rows of the metadata that were not asked for are no fault
            bundle = replace(bundle, skipped=tuple(one for one in bundle.skipped if one[1] != NOT_ALONG))
        yield bundle

    def _fetch_small(self, file: RepoFile) -> Path | str:
        """Where the file lies, or why it was not taken. Raises SafelightError for what concerns the others too."""
        try:
            return self._fetch(file, lambda _have, _total: None).path
        except RefusedFile as error:
            return str(error)

    # ---- archives ----

    def _from_archives(self) -> Iterator[Bundle]:
        if self._plan.url is not None:
            fetched = self._download(self._plan.title, lambda: _given(self._plan.url), None)
            yield self._limited(self._unpacked(fetched.path, self._plan.title, self._staging / "archive"))
            return
        for number, file in enumerate(self._plan.files):
            if self._left <= 0:
                return
            fetched = self._fetch_large(file)
            folder = self._staging / f"archive-{number}"
            yield self._limited(self._unpacked(fetched.path, file.path, folder))
            Root(self._staging).remove_tree(folder)

    def _unpacked(self, archive: Path, name: str, folder: Path) -> Bundle:
        with _called(archive, name):
            return archive_bundle(archive, folder, self._control.cancelled)

    def _limited(self, bundle: Bundle) -> Bundle:
        kept = bundle.pictures[: self._left]
        self._left -= len(kept)
        return replace(bundle, pictures=kept)

    # ---- Parquet ----

    def _from_parquet(self) -> Iterator[Bundle]:
        number = 0
        for file in self._plan.files:
            if self._left <= 0:
                return
            path = self._fetch_large(file).path
            with _called(path, file.path):
                table = look_into(path, self._new_folder(f"look-{number}"))
            image, text = _image_column(table, file.path), _text_column(table, file.path, self._options.column)
            for group in range(len(table.groups)):
                if self._left <= 0 or self._control.cancelled():
                    return
                self._control.progress(0, 0, "Opening")
                folder = self._new_folder(f"rows-{number}")
                with _called(path, file.path):
                    rows = take_group(path, folder, group, image=image, text=text, limit=self._left)
                yield _bundle_of(rows, number)
                number += len(rows)
                self._left -= len(rows)
                Root(self._staging).remove_tree(folder)

    def _new_folder(self, name: str) -> Path:
        folder = Root(self._staging).child(name)
        folder.mkdir(mode=0o700)
        return folder

    # ---- fetching ----

    def _fetch_large(self, file: RepoFile) -> Fetched:
        return self._download(file.path, lambda: self._url(file), file)

    def _download(self, name: str, locate: Callable[[], SafeUrl], file: RepoFile | None) -> Fetched:
        def progress(have: int, total: int | None) -> None:
            of = f" of {gigabytes(total)}" if total else ""
            self._control.progress(have >> 10, (total or 0) >> 10, f"Fetching {gigabytes(have)}{of}")

        if file is not None:
            return self._fetch(file, progress)
        wanted = Wanted(name, None, None, max_bytes=MAX_ARCHIVE_BYTES)
        return self._get(locate, wanted, progress)

    def _fetch(self, file: RepoFile, progress: Callable[[int, int | None], None]) -> Fetched:
        limit = _limit_of(file.path)
        if file.size is not None and file.size > limit:
            raise RefusedFile(f"{file.path} has {gigabytes(file.size)}; {gigabytes(limit)} are allowed.")
        wanted = Wanted(file.path, file.size, file.sha256 or None, file.git_sha1 or None, limit)
        return self._get(lambda: self._url(file), wanted, progress)

    def _get(
        self, locate: Callable[[], SafeUrl], wanted: Wanted, progress: Callable[[int, int | None], None]
    ) -> Fetched:
        try:
            return fetch(
                self._network,
                locate,
                Root(self._parts),
                wanted,
                token=self._token,
                progress=progress,
                cancelled=self._control.cancelled,
            )
        except Interrupted as error:
            raise FailedDownload(f"{error} What has come is kept: start the same import again.") from None

    def _url(self, file: RepoFile) -> SafeUrl:
        path = f"/datasets/{self._plan.repo}/resolve/{self._plan.commit}/{file.path}"
        return self._network.url(Service.HUGGING_FACE, path)


def _bundle_of(rows: Sequence[ParquetRow], first: int) -> Bundle:
    """The pictures of some rows; `first` is the number of the first of them in the whole dataset."""
    pictures, skipped = [], []
    for number, row in enumerate(rows, first):
        name = PurePosixPath(row.name.replace("\\", "/")).name or f"{number:06}"
        if row.path is None:
            skipped.append((f"row {number}", row.fault))
        else:
            pictures.append(Incoming(name, row.path, row.text or None))
    return Bundle(tuple(pictures), tuple(skipped))


@contextmanager
def _called(path: Path, name: str) -> Iterator[None]:
    """Lets refusals speak of a file by the name that it has at its source, not by the one it has in the cache."""
    try:
        yield
    except RefusedFile as error:
        raise RefusedFile(str(error).replace(path.name, PurePosixPath(name).name)) from None


def _given(url: SafeUrl | None) -> SafeUrl:
    assert url is not None
    return url


def _limit_of(path: str) -> int:
    """Most bytes of a file of a dataset, by its kind."""
    lower = path.lower()
    if lower.endswith(".parquet"):
        return MAX_PARQUET_BYTES
    if lower.endswith(".zip"):
        return MAX_ARCHIVE_BYTES
    return MAX_IMAGE_BYTES if lower.endswith(PICTURE_SUFFIXES) else MAX_TABLE_BYTES


def _image_column(table: ParquetTable, name: str) -> str:
    for wanted in IMAGE_COLUMNS:
        if wanted in table.images:
            return wanted
    if not table.images:
        raise RefusedFile(
            f"{name} has no column of pictures. Its columns of text are {', '.join(table.texts) or 'none'}."
        )
    return table.images[0]


def _text_column(table: ParquetTable, name: str, asked: str) -> str:
    """The column of captions. Raises RefusedFile for one that was asked for and is not there."""
    if asked and asked not in table.texts:
        raise RefusedFile(f"{name} has no column {asked!r} of text. It has {', '.join(table.texts) or 'none'}.")
    lower = {column.lower(): column for column in table.texts}
    return asked or next((lower[wanted] for wanted in CAPTION_COLUMNS if wanted in lower), "")
