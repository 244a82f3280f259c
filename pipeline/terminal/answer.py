"""A command's answer on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.transforms.printable import printable, printable_json


@dataclass(frozen=True)
class Answer:
    """The same in words, line by line, and as what JSON has. A line feed within a line is a name's, and is shown as such."""

    lines: Sequence[str]
    document: dict[str, Any]

    @property
    def text(self) -> str:
        return "\n".join(map(printable, self.lines))

    def shown(self, *, as_json: bool, one_line: bool) -> str:
        if not as_json:
            return self.text
        return printable_json(self.document, indent=None if one_line else 2, default=str)
