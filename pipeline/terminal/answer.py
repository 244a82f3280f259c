"""What a command answers on standard output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """The same in words and as what JSON has."""

    text: str
    document: dict[str, Any]

    def shown(self, *, as_json: bool, one_line: bool) -> str:
        if not as_json:
            return self.text
        return json.dumps(self.document, ensure_ascii=False, indent=None if one_line else 2, default=str)
