"""`convert`: a PyTorch checkpoint becomes a safetensors file, in a sandbox."""

from __future__ import annotations

from pathlib import Path

from security.convert import convert_checkpoint, describe


def convert(source: Path, out: Path | None) -> int:
    """Writes the tensors of `source` to `out`, by default beside it. Raises SafelightError for what is not taken."""
    target = out or source.with_suffix(".safetensors")
    conversion = convert_checkpoint(source.expanduser().absolute(), target.expanduser().absolute())
    print(f"{target}: {describe(conversion)}")
    return 0
