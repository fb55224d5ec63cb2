"""Serves Safelight with --share where a program of ours stands in for Gradio's tunnel: `python -m ... WORKSPACE HOURS`.

The stand-in says what the real frpc says when it is connected, and then waits to be ended. Everything else is as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gradio.networking
import gradio.tunneling

from ui.server import ServeOptions, serve

HOST = "abcdef0123456789ab.gradio.live"
TUNNEL = f"""#!/bin/sh
echo $$ > "$(dirname "$0")/tunnel.pid"
echo "start proxy success: https://{HOST}"
exec sleep 600
"""


def main(workspace: Path, hours: float) -> int:
    """Serves until it is ended."""
    workspace.mkdir(parents=True, exist_ok=True)
    tunnel = workspace.parent / "frpc"
    tunnel.write_text(TUNNEL)
    tunnel.chmod(0o700)
    gradio.networking.GRADIO_SHARE_SERVER_ADDRESS = "127.0.0.1:9"
    gradio.tunneling.BINARY_PATH = str(tunnel)
    options = ServeOptions(
        port=0, share=True, workspace=workspace, open_browser=False, share_hours=hours, allow_root=True
    )
    return serve(options)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
