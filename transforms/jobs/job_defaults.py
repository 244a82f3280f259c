"""What help texts say of a job before anything heavy is imported: its defaults, and where it writes beside predictions."""

from __future__ import annotations

REPORT = "_headrace/report.html"
DEAD_LETTERS_FOLDER = "_dead_letters"
