"""No name and no foreign text moves a cursor, hides a letter or forges a line, wherever it is shown."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.cli import main
from headrace.pipeline.terminal.answer import Answer
from headrace.pipeline.terminal.tables import table
from headrace.transforms.errors import HeadraceError, StorageError
from headrace.transforms.printable import printable, printable_json, printable_lines
from headrace.transforms.report.charts import Bars
from headrace.transforms.report.html import drawn, facts_table, say
from headrace.transforms.report.kept import embedded
from tests.support.jobs import model_folder, put_table, rows

# A title for the window, a cleared screen, C1's own introducer, a reordered and a hidden part, a forged line.
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj\u2066\u200b\ufeff\x7f"
FORGED = f"{EVIL}\nSound.\r\u2028Sound.\x85Sound."
# Marks that show (an Arabic number sign) or shape hieroglyphs are of the category Cf, too.
SHOWN_MARKS = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}


def unprintable(text: str, allowed: str = "") -> list[str]:
    return [
        hex(ord(letter))
        for letter in text
        if letter not in allowed
        and unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp", "Cs")
        and ord(letter) not in SHOWN_MARKS
    ]


def test_every_character_of_unicode_is_shown_or_escaped() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    hidden = [letter for letter in every if unprintable(letter)]
    assert len(hidden) > 2_200  # most of them surrogates
    for letter in hidden:
        assert not unprintable(printable(f"a{letter}b")), hex(ord(letter))
    shown = [letter for letter in every if unicodedata.category(letter)[0] in "LNPS"]
    text = "".join(shown)
    escaped = set(shown) - set(printable(text))
    assert {unicodedata.name(letter).rpartition(" ")[2] for letter in escaped} == {"FILLER"}  # letters without a shape


@given(st.text(st.characters(), max_size=40))
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    assert len(shown.splitlines()) <= 1
    assert not unprintable(shown, "\u200c\u200d")
    shown.encode()
    lines = printable_lines(text)
    assert lines.count("\n") == text.count("\n")
    assert printable(lines) == shown


@given(st.text(st.characters(), max_size=40))
def test_json_holds_every_name_as_it_is(text: str) -> None:
    document = {text: [text]}
    for shown in (printable_json(document), printable_json(document, indent=2), embedded(document)):
        assert json.loads(shown) == json.loads(json.dumps(document))
        assert not unprintable(shown, "\n\u200c\u200d")


@pytest.mark.parametrize(
    "text", ["naïve.parquet", "日本語", "👩‍👩‍👧 ❤️ 1️⃣ ©️", "می‌خواهم", "क्‍ष", "[bold]x[/bold]", r"C:\new", "שלום"]
)
def test_honest_names_of_every_script_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["pay\u200dpal", "a\u200c", "\u200db", "x\ufe0f", "1\ufe0e"])
def test_what_shows_nothing_beside_latin_letters_is_escaped(text: str) -> None:
    assert printable(text).isascii()


def test_each_kind_of_escape() -> None:
    assert printable("\x1b\n\r\t\x00\x7f\x9b") == r"\x1b\n\r\t\x00\x7f\x9b"
    assert printable("\u202e\u2028\udc80\U000e0041") == r"\u202e\u2028\udc80\U000e0041"


def test_errors_tables_answers_and_the_page() -> None:
    error = StorageError(FORGED, expected=FORGED, found=FORGED, cure=FORGED)
    texts = [str(error), *(getattr(error, part) for part in ("what", "expected", "found", "cure"))]
    texts += table((FORGED, "b"), [("c", FORGED)], 60)
    texts += [say(FORGED), facts_table([(FORGED, FORGED)]), *drawn(Bars("t", (FORGED,), (1.0,), None))["labels"]]
    texts += Answer(["a", FORGED], {}).text.split("\n")
    assert [found for text in texts if (found := unprintable(text))] == []
    assert len(Answer(["a", FORGED], {}).text.split("\n")) == 2
    assert type(error)(str(error)).what == str(error)


Capture = pytest.CaptureFixture[str]


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Names of a folder, a partition, a file and columns are hostile; one of the columns lacks rows."""
    folder = tmp_path / "in" / f"k={EVIL}"
    folder.mkdir(parents=True)
    some = rows(0, 3).append_column(f"[bold]c{FORGED}[/bold]", pa.array(["v", None, EVIL]))
    put_table(f"{folder}/f{EVIL}\n.parquet", some)
    put_table(f"{folder}/g.parquet", some.slice(0, 2))
    return [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/**/*.parquet"]


def run(capfd: Capture, *argv: str) -> tuple[int, str]:
    code = main([*argv])
    out, err = capfd.readouterr()
    for text in (out, err):
        assert not unprintable(text, "\n"), argv
        assert "\nSound" not in text or argv[0] == "verify"
    return code, out + err


def test_every_command_with_hostile_names(capfd: Capture, flags: list[str], tmp_path: Path) -> None:
    output = f"--output={tmp_path}/out"
    assert run(capfd, "inspect", *flags)[0] == 0
    for more in ([], ["--json"], ["--log_format=json"]):
        assert run(capfd, "plan", *flags, output, *more)[0] == 0
    code, text = run(capfd, "plan", *flags, output, f"--feature=x=n{EVIL}")
    assert code == 2
    assert r"\x1b]0;owned\x07" in text
    assert run(capfd, "plan", *flags, output, f"--signature=s{FORGED}", "--verbose")[0] == 2
    assert run(capfd, "plan", *flags, output, f"--{FORGED}")[0] == 2
    code, text = run(
        capfd, *flags, output, "--postprocess=tests.transforms.test_printable:refuse", "--on_error=dead_letter"
    )
    assert code == 1
    code, text = run(capfd, *flags, output, "--overwrite", "--json")
    assert code == 0
    assert run(capfd, "verify", output)[0] == 0
    page = (tmp_path / "out/_headrace/report.html").read_text()
    assert "[bold]c" in page
    assert not unprintable(page.partition("<script>")[0], "\n")
    (next(tmp_path.glob("out/**/g*.parquet"))).write_bytes(b"")
    assert run(capfd, "verify", output)[0] == 1


def refuse(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A user's own function, which fails with a hostile text for rows, and passes the empty batch that is tried first."""
    if batch.num_rows:
        raise ValueError(FORGED)
    return batch


_SINKS = """
import logging, os, sys, threading, warnings
from headrace.pipeline.terminal.log import own_process, set_up_logs, log_event, log_at_once, log_error, log_interrupted, log_raw
from headrace.transforms.errors import HeadraceError
from headrace.transforms.models.progress_line import ProgressLine
FORGED = sys.argv[2]
set_up_logs(as_json=sys.argv[1] == "json", verbose=True)
own_process()
log_event("note", FORGED, name=FORGED)
error = HeadraceError(FORGED)
error.__cause__ = ValueError(FORGED)
log_error("Cannot start", error, 2, verbose=True)
log_at_once("stopping", FORGED)
log_interrupted("stopped", FORGED)
log_raw(FORGED.encode())
log_raw(b"\\xff\\x9b")
logging.getLogger("some.library").warning("%s", FORGED)
try:
    raise ValueError(FORGED)
except ValueError:
    logging.getLogger("some.library").exception("it failed")
warnings.warn(FORGED)
ProgressLine(FORGED)(1, 1)
thread = threading.Thread(target=lambda: {}[FORGED])
thread.start()
thread.join()
raise RuntimeError(FORGED)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_way_to_standard_error(form: str) -> None:
    env: dict[str, Any] = os.environ | {"PYTHONUTF8": "1"}
    ran = subprocess.run([sys.executable, "-c", _SINKS, form, FORGED], capture_output=True, env=env, timeout=120)
    text = ran.stderr.decode()
    assert ran.returncode == 1
    assert text.count("owned") >= 10
    assert not unprintable(text, "\n\t")
    assert text.splitlines()[0].startswith("\\x1b]0;" if form == "text" else "{")
    lines = [line for line in text.splitlines() if line.startswith("RuntimeError: " if form == "text" else "{")]
    assert r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj\u2066" in lines[-1] or form == "json"


def test_a_display_shows_its_notice_and_interprets_no_markup() -> None:
    from rich.console import Console

    from headrace.pipeline.terminal.live_display import Display
    from headrace.pipeline.terminal.progress_meter import Meter

    display = Display(Meter())
    display.announce(f"[bold red]x[/bold red] [link=https://e.org]y[/link] {EVIL}")
    console = Console(force_terminal=True, width=200, color_system=None)
    with console.capture() as captured:
        console.print(display)
    text = captured.get()
    assert "[bold red]x[/bold red] [link=https://e.org]y[/link] \\x1b]0;owned" in text
    assert not unprintable(text, "\n")


def test_a_workers_error_is_raised_anew_as_it_was() -> None:
    first = HeadraceError(FORGED, found=FORGED)
    assert str(HeadraceError(str(first))) == str(first)
    logging.getLogger(__name__).debug("%s", first)
