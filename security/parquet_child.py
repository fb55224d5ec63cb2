"""Reads a Parquet file with pyarrow, confined by sandbox.run_confined: one open file, one folder to write to, no network.

Arguments: the descriptor of the file, and what to do as JSON. "look" prints the columns that may hold pictures or texts and
the rows of each row group; "read" writes the pictures of one row group as files 0, 1, ... and their texts as rows.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS_NAME = "rows.jsonl"
MAX_COLUMNS = 500
MAX_TEXT_CHARACTERS = 64_000
_ROWS_AT_ONCE = 8


def main(arguments: list[str]) -> int:
    """Does it. A fault of the file is printed as {"fault": words}; what pyarrow can't survive ends in an exit code."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # the others start threads
    order = json.loads(arguments[1])
    try:
        with os.fdopen(int(arguments[0]), "rb") as file:
            # one thread and no reading ahead: this process may start none, and memory stays that of some rows
            table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            answer = _look(table) if order["do"] == "look" else _read(table, order)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        answer = {"fault": f"{type(error).__name__}: {error}"[:300]}
    sys.stdout.write(json.dumps(answer))
    return 0


def _look(table: Any) -> dict[str, Any]:
    import pyarrow as pa

    images, texts = [], []
    for field in list(table.schema_arrow)[:MAX_COLUMNS]:
        kind = field.type
        if pa.types.is_struct(kind):
            if kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type):
                images.append(field.name)
        elif _is_bytes(kind):
            images.append(field.name)
        elif _is_text(kind) or (pa.types.is_list(kind) and _is_text(kind.value_type)):
            texts.append(field.name)
    groups = [table.metadata.row_group(number).num_rows for number in range(table.metadata.num_row_groups)]
    return {"images": images, "texts": texts, "groups": groups}


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _read(table: Any, order: dict[str, Any]) -> dict[str, Any]:
    written = 0
    with Path(ROWS_NAME).open("w", encoding="utf-8") as told:
        for number, (data, name, text) in enumerate(_rows(table, order)):
            if number >= order["limit"]:
                break
            entry: dict[str, Any] = {"name": name[:300], "text": text}
            if data is None:
                entry["fault"] = "the row holds no picture"
            elif len(data) > order["max_bytes"]:
                entry["fault"] = f"the picture has {len(data)} bytes; {order['max_bytes']} are allowed"
            else:
                Path(str(number)).write_bytes(data)
                entry["file"] = str(number)
                written += len(data)
            told.write(json.dumps(entry) + "\n")
            if written > order["max_total_bytes"]:
                raise ValueError(f"a row group holds over {order['max_total_bytes']} bytes of pictures")
    return {}


def _rows(table: Any, order: dict[str, Any]) -> Iterator[tuple[bytes | None, str, str]]:
    """(picture, name, text) of each row of the group."""
    image, text = order["image"], order["text"]
    columns = [image, *([text] if text else [])]
    batches = table.iter_batches(_ROWS_AT_ONCE, row_groups=[order["group"]], columns=columns, use_threads=False)
    for batch in batches:
        texts = batch.column(text).to_pylist() if text else [None] * batch.num_rows
        for value, words in zip(batch.column(image).to_pylist(), texts, strict=True):
            data = value.get("bytes") if isinstance(value, dict) else value
            name = value.get("path") if isinstance(value, dict) else None
            yield data, name if isinstance(name, str) else "", _text(words, text)


def _text(words: Any, column: str) -> str:
    """Of several sentences the first, of a list of tags all."""
    if isinstance(words, list):
        strings = [one for one in words if isinstance(one, str)]
        words = ", ".join(strings) if column.lower() == "tags" else next(iter(strings), "")
    return words[:MAX_TEXT_CHARACTERS] if isinstance(words, str) else ""
