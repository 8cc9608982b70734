"""A refusal: one setting this machine will not have, why, and what to do about it."""

import re
from dataclasses import dataclass

_LONG_COMMENT = re.compile(r'(comment "(?:[^"\\]|\\.){40})(?:[^"\\]|\\.)+(")')


@dataclass(frozen=True)
class Refusal:
    """`setting` as in a change, `reason` in CamelCase, `message` one sentence with the remedy."""

    setting: str
    reason: str
    message: str

    def document(self) -> dict[str, str]:
        """Return the refusal as `plan -o json` prints it."""
        return {"setting": self.setting, "reason": self.reason, "message": self.message}


def shorter(text: str, most: int = 120) -> str:
    """Return what a rule's text is known by: at most so many characters of it, a long comment shortened first."""
    if len(text) > most:
        text = _LONG_COMMENT.sub(r"\1...\2", text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
