"""The Hugging Face hub, if it answers: snapshots in its own cache, downloads only where it is reachable quickly."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from bdc.errors import InputError
from bdc.llm.folders import check_folder

_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "1_Pooling/*"]
_PROBE_SECONDS = 3.0


def cached(repo: str) -> Path | None:
    """The newest snapshot in the hub's local cache, if it is whole, without touching the network."""
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, allow_patterns=_PATTERNS, local_files_only=True))
    except Exception:  # hub's exception types moved between its versions; any of them means: not there
        return None
    try:
        check_folder(folder)
    except InputError:  # an interrupted download, or one of some files; the client completes it
        return None
    return folder


def download(repo: str) -> tuple[Path | None, str]:
    """(snapshot folder, "") or (None, why not), within seconds where the hub cannot be reached."""
    if any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        return None, "offline mode is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models/{repo}", timeout=_PROBE_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            pass  # gated or private: a token, which the client sends, may open it
        else:
            return None, f"{endpoint} answered {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return None, f"{endpoint} is not reachable ({getattr(error, 'reason', error)})"
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo, allow_patterns=_PATTERNS)), ""
    except Exception as error:  # as above: whatever the client raises, the next source is tried
        return None, f"{endpoint}: {(str(error) or type(error).__name__).splitlines()[0]}"
