"""What is allowed, in numbers and names, each with its reason. The rest of this package reads its limits here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

VERSION = "0.1.0"
"""The program's version, as it introduces itself to the hubs."""

MIB = 1024 * 1024


class Service(StrEnum):
    """A hub that models are fetched from."""

    HUGGING_FACE = "Hugging Face"
    CIVITAI = "Civitai"


# ---- kinds of files -------------------------------------------------------------------------------------------------

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Pictures of a dataset. GIF, TIFF, SVG, PSD and the other formats bring decoders that a training set does not need."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""The only Pillow decoders that are ever tried, whatever the file is called."""

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib", ".npz", ".npy")
"""Formats that may hold a Python pickle, which can run code while it is being read."""
CODE_SUFFIXES = (
    ".py", ".pyc", ".pyd", ".pyw", ".ipynb", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".jar",
)  # fmt: skip
"""Programs. A model folder that holds one is refused as a whole: nothing here runs them, but nobody needs them."""

# ---- sizes ----------------------------------------------------------------------------------------------------------

MAX_NAME_BYTES = 150
"""Longest file name in UTF-8. File systems end at 255; the rest is room for numbers and endings that we add."""
MAX_PATH_CHARACTERS = 4096
"""Longest path a user may type; the limit of Linux."""
MAX_PATTERN_CHARACTERS = 500
"""Longest regular expression that a user may type for find and replace."""
MAX_PATTERN_REPEATS = 10_000
"""Product of all counts ({3}, {1,20}) in one: such groups are written out in memory."""
MAX_LAYER_PATTERN_SECONDS = 3.0
"""Longest that a pattern which chooses a model's layers may take over all of their names: a few thousand, each short."""
MAX_PATTERN_SECONDS = 3.0
"""Longest that one find and replace may take over all captions of a dataset."""

MAX_IMAGE_BYTES = 128 * MIB
"""Largest picture file; an uncompressed 8-bit RGB picture of 42 megapixels."""
MAX_IMAGE_PIXELS = 64_000_000
"""Largest picture, 8000 x 8000. A file of 17 kB can claim 144 megapixels, so this is checked before decoding."""
MAX_IMAGE_SIDE = 32_768
"""Longest side in pixels; panoramas are shorter. A file of 74 bytes with one line of 64 million keeps Pillow busy for 8 s."""
MAX_JPEG_SCANS = 100
"""Most scans of a JPEG. Progressive ones have about ten; each further one costs the decoder a pass over the picture."""

MAX_HEADER_BYTES = 16 * MIB
"""Largest safetensors header. A model of 2,500 tensors needs 0.3 MiB; the library itself allows 100 MB."""
MAX_WEIGHT_METADATA_BYTES = 8 * MIB
"""Largest metadata of a safetensors file, as characters. Tag counts of a large dataset and a thumbnail fit."""
MAX_TENSORS = 20_000
"""Most tensors in one file. The largest image models have about 3,000."""
MAX_TENSOR_NAME_BYTES = 512
"""Longest tensor name in UTF-8. Real ones stay under 200."""
MAX_TENSOR_DIMENSIONS = 8
"""Most dimensions of a tensor. Convolutions over video have 5."""

MAX_CONFIG_BYTES = 256 * 1024
"""Largest TOML or JSON configuration. A run's own file has about 10 KiB; 1 MB can keep a parser busy for seconds."""
MAX_CONFIG_DEPTH = 32
"""Deepest nesting of a configuration."""
MAX_CONFIG_DOTS_PER_LINE = 64
"""Most dots outside of strings in one line of TOML: a key of 20,000 dotted parts costs the parser 6 seconds."""
MAX_MODEL_JSON_BYTES = 1 * MIB
"""Largest JSON configuration inside a model folder."""
MAX_PICKLE_BYTES = 16 * MIB
"""Largest pickle inside a PyTorch checkpoint, without the tensors' numbers. A Stable Diffusion model's has 0.3 MiB."""
MAX_PICKLE_OPERATIONS = 2_000_000
"""Most instructions of such a pickle. A Stable Diffusion model's has about 60,000."""
MAX_CHECKPOINT_BYTES = 64 * 1024 * MIB
"""Largest checkpoint that is converted."""
MAX_ONNX_BYTES = 2048 * MIB - 1
"""Largest ONNX model; protobuf itself allows no larger message. Taggers have 0.3 to 1.3 GB."""
MAX_VOCABULARY_BYTES = 32 * MIB
"""Largest tokenizer file. CLIP's tokenizer.json has 2.2 MiB, that of a captioner built on Llama 3 about 17 MiB."""
MAX_MODEL_FOLDER_ENTRIES = 1000
"""Most files and folders in a model folder. A real one has about 40."""

MAX_ARCHIVE_ENTRIES = 10_000
"""Most files and folders in a zip archive. A style LoRA needs 30 pictures, a large fine-tune some thousand."""
MAX_ARCHIVE_BYTES = 20 * 1024 * MIB
"""Largest content of a zip archive, unpacked."""
MAX_ARCHIVE_FILE_BYTES = 256 * MIB
"""Largest file in a zip archive, unpacked."""
MAX_ARCHIVE_RATIO = 100
"""Most bytes that one packed byte may become in a file over 1 MiB. Pictures hardly shrink; a bomb reaches 1032."""
MAX_ARCHIVE_DEPTH = 4
"""Most folders above a file in a zip archive."""

MAX_PARQUET_BYTES = 4 * 1024 * MIB
"""Largest Parquet file. Hugging Face writes shards of half a gigabyte."""
MAX_PARQUET_GROUPS = 20_000
"""Most row groups of one; a hundred rows each are usual."""
MAX_PARQUET_GROUP_BYTES = 4 * 1024 * MIB
"""Most bytes of pictures in one row group, unpacked."""

MAX_REQUEST_BODY_BYTES = 16 * MIB
"""Largest request body other than an upload: a few thousand edited captions fit."""
MAX_UPLOAD_BYTES = 2 * 1024 * MIB
"""Largest upload request. Larger model files are copied into the models folder or chosen by their path."""
MAX_UPLOADS_PER_LOGIN = 8
"""Most uploads in pieces that one login may have open; the one that began first goes."""
MAX_LOGIN_BODY_BYTES = 4096
"""Largest body of the login form: one password."""
BODY_IDLE_SECONDS = 30.0
"""A request whose body stands still for this long is given up."""
BODY_SECONDS = 60.0
"""A body that is read as a whole must have come by then: 16 MiB at 280 KiB/s."""
BODY_GRACE_SECONDS = 60.0
"""An upload may be slow for this long."""
MIN_BODY_BYTES_PER_SECOND = 1024
"""What an upload must average after that; a bad mobile connection brings ten times as much."""
HEAD_SECONDS = 20.0
"""A connection on which no whole request head has come by then is closed."""
MAX_CONNECTIONS = 300
"""Most connections at a time; a browser opens six. Beyond, visitors are told to come back: open files stay for training."""

# ---- downloads: where to ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostRule:
    """The hosts of one hub. All are compared as whole names in lower case; `suffixes` start with a dot.

    `api` is asked unless the user named another of `credentials`. `typed`: what a user may write. `redirects`,
    `suffixes`, `patterns` and `paths` (host -> beginning of the path) add what an answer may send us to.
    `credentials`: the only hosts that ever get the user's token.
    """

    api: str
    typed: frozenset[str]
    credentials: frozenset[str]
    redirects: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()
    paths: tuple[tuple[str, str], ...] = ()


HOST_RULES: dict[Service, HostRule] = {
    # huggingface.co/.well-known/meta.json names hf.co and below for its CDNs (cdn-lfs*.hf.co, *.aws.cdn.hf.co,
    # *.gcp.cdn.hf.co, transfer.xethub.hf.co); hub-docs (2026-08-22) advises these two suffixes rather than a list,
    # since regions are added. hf.space, where users' programs run, is neither.
    Service.HUGGING_FACE: HostRule(
        api="huggingface.co",
        typed=frozenset({"huggingface.co", "hf.co", "www.huggingface.co", "www.hf.co"}),
        credentials=frozenset({"huggingface.co", "hf.co"}),
        suffixes=(".hf.co", ".huggingface.co"),
    ),
    # Since 2026-04 civitai.com shows only what is safe for work, civitai.red everything; the API answers on all three.
    # Files lie in buckets of one Cloudflare account (civitai#975 and the project's seed data) or, since 2026-03, at
    # b2.civitai.com (civitai#2113), behind which is one Backblaze bucket. Other accounts of these providers are
    # anybody's, so the account is part of the rule.
    Service.CIVITAI: HostRule(
        api="civitai.com",
        typed=frozenset(
            {"civitai.com", "civitai.red", "civitai.green", "www.civitai.com", "www.civitai.red", "www.civitai.green"}
        ),
        credentials=frozenset({"civitai.com", "civitai.red", "civitai.green"}),
        redirects=frozenset({"b2.civitai.com"}),
        patterns=(
            re.compile(r"civitai-[a-z0-9-]{1,40}\.5ac0637cfd0766c97916cefa3764fbdf\.r2\.cloudflarestorage\.com"),
        ),
        paths=(("s3.us-west-004.backblazeb2.com", "/civitai-modelfiles/"),),
    ),
}
"""Where downloads may go, as of 2026-11. Renewed with a release, never while the program runs."""

SECRET_PARAMETERS = frozenset(
    {
        "token", "api_key", "apikey", "api-key", "access_token", "auth", "auth_token", "authorization", "bearer",
        "hf_token", "civitai_token", "password", "secret", "x-api-key",
    }
)  # fmt: skip
"""Names of query parameters that would carry a token. Addresses end up in logs and files; tokens must not."""
MAX_TYPED_URL = 2048
"""Longest address a user may type, in characters."""
MAX_REDIRECT_URL = 8192
"""Longest address that an answer may send us to. Signed ones carry a session token and a file name: 1 to 3 KB."""
MAX_REDIRECTS = 5
"""Most redirects in a row. Both hubs need two."""

# ---- downloads: how much and how long --------------------------------------------------------------------------------

MAX_MODEL_BYTES = 32 * 1024 * MIB
"""Largest model file. The largest single file of an image model in wide use has 24 GB; a typing error with 50 GB stops."""
MAX_JSON_ANSWER_BYTES = 4 * MIB
"""Largest answer of a hub's API. The file list of a repository of 1,000 files has about 0.5 MB."""
FREE_DISK_RESERVE_BYTES = 2 * 1024 * MIB
"""Downloads leave this much of the disk free: a full disk stops training and saving."""
FREE_DISK_CHECK_BYTES = 256 * MIB
"""The free space is looked at again after this many bytes; others write on the same disk."""
PART_FILE_DAYS = 14
"""Age at which what an unfinished download left is deleted."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long connections may take, in seconds unless the name says otherwise, and how often they are tried."""

    connect: float = 15.0  # TCP and TLS to one address
    answer: float = 30.0  # from the name's look-up to the last header; a server that drips headers ends here
    idle: float = 30.0  # without one byte of the body
    json_total: float = 60.0  # a whole API answer
    download_total: float = 24 * 3600.0  # one transfer: the largest file at 400 KB/s; what is there is kept
    throughput_window: float = 60.0
    throughput_bytes_per_second: int = 16 * 1024  # slower over a whole window is given up and tried again
    poll: float = 0.2  # how soon a cancelled download stops
    attempts: int = 5  # in a row without progress, for 429, 5xx and broken connections
    first_pause: float = 1.0  # doubles with every attempt
    longest_pause: float = 60.0
    longest_retry_after: float = 120.0  # a hub that asks for more is not waited for


PATIENCE = Patience()
"""What the program uses; tests hand in a shorter one."""

# ---- the served page ------------------------------------------------------------------------------------------------

MIN_PASSWORD_LENGTH = 12
"""Shortest password that a user may choose, in characters."""
SESSION_SECONDS = 12 * 3600
"""A login ends after this long, used or not."""
SESSION_IDLE_SECONDS = 2 * 3600
"""A login ends after this long without a request. An open page asks every few seconds, so it stays logged in."""
MAX_SESSIONS = 200
"""Most logins at a time; the one that was used longest ago goes first."""
LOGIN_BASE_DELAY_SECONDS = 0.25
"""Wait after the first wrong password. It doubles with every further one."""
LOGIN_MAX_DELAY_SECONDS = 30.0
"""Longest wait before a password is looked at."""
MAX_LOGIN_FAILURES = 10
"""Wrong passwords in a row that shut the form for LOGIN_LOCK_SECONDS. The link with the key still works."""
LOGIN_LOCK_SECONDS = 15 * 60
"""How long the form stays shut. Counted for everybody together: behind a tunnel all visitors have one address."""
MAX_WAITING_LOGINS = 8
"""Most password checks that wait for their turn; further ones are turned away at once."""
RATE_WINDOW_SECONDS = 10.0
"""Length of the window in which requests are counted."""
MAX_REQUESTS_PER_WINDOW = 3000
"""Most requests of one login (or of everybody, without a password) in a window. Opening the page takes about 150."""
MAX_ANONYMOUS_REQUESTS_PER_WINDOW = 300
"""Most requests of all visitors together who have not logged in yet, in a window."""
MAX_NAMES_PER_LOGIN = 2000
"""Most page sessions, events and uploads, of each, that are remembered for a login."""
MIN_SHARE_HOURS, SHARE_HOURS, MAX_SHARE_HOURS = 1, 12, 72
"""How long a share link may live, and does by default. Gradio's own links end after a week at the latest."""

# ---- versions and environment ---------------------------------------------------------------------------------------

FLOORS: dict[str, str] = {
    "torch": "2.10.0",  # CVE-2026-24747: heap corruption in the weights_only unpickler
    "diffusers": "0.38.0",  # CVE-2026-44513, CVE-2026-45804, CVE-2026-44827: remote code from a model folder
    "transformers": "5.10.0",  # CVE-2026-4372, CVE-2026-5241, CVE-2026-9856: code and file names from config.json
    "gradio": "6.25.0",  # open redirects and server-side requests through /file=, fixed over 6.16 to 6.25
    "pillow": "12.3.0",  # CVE-2026-25990, CVE-2026-40192, CVE-2026-54058, CVE-2026-59197: decoders
    "safetensors": "0.8.0",  # the version whose header rules weights.py was compared with
    "huggingface_hub": "2.4.0",  # credentials are not sent on when a redirect leaves the hub
    "starlette": "1.1.0",  # PYSEC-2026-161
    "urllib3": "2.7.0",  # CVE-2026-44431, CVE-2026-44432, CVE-2026-21441
    "requests": "2.33.0",  # CVE-2026-25645
}
"""Oldest version of each package that the program starts with. Packages that are not installed are not looked at."""

DROPPED_VARIABLE_PREFIXES = ("GRADIO_",)
"""Gradio reads over 60 variables; many widen what is served (allowed paths, sharing, editing code from the page)."""
DROPPED_VARIABLES = (
    "FORWARDED_ALLOW_IPS",  # whose X-Forwarded-* headers the web server believes
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",  # lets torch run code from a pickle again
    "SSLKEYLOGFILE",  # writes the keys of encrypted connections to a file
)
"""Variables that undo a protection; removed from the environment at start."""
OFFLINE_VARIABLES: dict[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "USE_HUB_KERNELS": "0",  # transformers would fetch compiled code from the hub
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime since 1.29: an id in the user's cache, and a report of every network opened
    "DO_NOT_TRACK": "1",
}
"""Keeps the model libraries from opening connections, running code that a model brought, and reporting home."""
CHILD_VARIABLES = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV",
    "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA", "USERPROFILE", "PROGRAMDATA",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
)  # fmt: skip
"""What a child process gets to see. Everything else, tokens above all, stays here."""
CHILD_VARIABLE_PREFIXES = ("CUDA_", "NCCL_", "NVIDIA_", "ROCR_", "HIP_")
"""Families of variables that a child process needs to find the GPU."""
CONFINED_CHILD_VARIABLES: dict[str, str] = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""A confined child works on one thread and without the GPU: it may start no threads and open no device."""
MAX_CHILD_OUTPUT_BYTES = 4 * MIB
"""Most that a child process may print. Ours print a few lines."""
