"""A short name for data: equal data, equal name."""

import hashlib
import json
from typing import Any


def hash_of(document: Any) -> str:
    """Return a short stable hash of JSON-ready data, whatever the order of its keys: 12 hexadecimal digits."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
