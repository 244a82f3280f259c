"""Facts for help texts, available before anything heavy is imported: a job's defaults, and the other files that it writes."""

from __future__ import annotations

REPORT = "_headrace/report.html"
DEAD_LETTERS_FOLDER = "_dead_letters"
