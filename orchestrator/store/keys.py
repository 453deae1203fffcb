"""Content keys: a digest of everything that went into compiling an artifact."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

__all__ = ["content_key", "is_key"]


def content_key(parts: Any) -> str:
    """Returns the digest (SHA-256, hex) of JSON-like data; other objects count by their ``repr``."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def is_key(text: str) -> bool:
    """Tells whether a text can be a content key, and so the name of a folder."""
    return re.fullmatch(r"[0-9a-f]{16,128}", text) is not None
