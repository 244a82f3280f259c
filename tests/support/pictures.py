"""docs/terminal.svg: a terminal on which a real job runs, at the moment when most can be seen. `make pictures` makes it.

The job is the command line itself; its model lies in a bucket on loopback that answers slowly.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pyarrow as pa
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests.support.jobs import put_table
from tests.support.terminal import Terminal
from tests.support.warm import Warm

COLUMNS, LINES = 96, 12
MOST_SECONDS = 120
COMMAND = "headrace --model=gs://bench/model --input='in/*.parquet' --output=out --keep=id"
MOMENTS = {
    "while the model streams": r"model .* ([\d,.]+) of ([\d,.]+) MiB",
    "while rows are predicted": r"rows .* ([\d,]+) of ([\d,]+) +[\d,]+ rows/s",
}
Line = list[tuple[str, Style]]
# Light on dark, which the bars' unfinished parts are made for.
THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
    [
        (110, 118, 129),
        (255, 161, 152),
        (86, 211, 100),
        (227, 179, 65),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (240, 246, 252),
    ],
)
# rich's own form asks a server for its font.
FORM = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"
  role="img" aria-label="A job on a terminal">
  <style>
  .{unique_id}-matrix {{
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px; line-height: {line_height}px;
  }}
  {styles}
  </style>
  <defs>
  <clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
  {lines}</defs>
  <rect fill="#0d1117" stroke="#3d444d" x="1" y="1" width="99.8%" height="98.8%" rx="8"/>
  <g transform="translate({terminal_x}, 25)" clip-path="url(#{unique_id}-clip-terminal)">
  {backgrounds}
  <g class="{unique_id}-matrix">{matrix}</g>
  </g>
</svg>
"""


def main() -> int:
    with Warm() as warm:
        Path(sys.argv[1]).write_text(terminal_picture(warm), "utf-8")
    return 0


def terminal_picture(warm: Warm) -> str:
    """As SVG."""
    with tempfile.TemporaryDirectory() as folder:
        _make(folder)
        bucket = [sys.executable, "-m", "benchmarks.bucket", f"{folder}/bucket", "--total_mb_s=4"]
        # It ends when its standard input does.
        with Popen(bucket, stdin=PIPE, stdout=PIPE, text=True) as serving:
            assert serving.stdin is not None
            assert serving.stdout is not None
            port = serving.stdout.readline().strip()
            try:
                return _picture_of(_run(warm, folder, port))
            finally:
                serving.stdin.close()


def _make(folder: str) -> None:
    import keras

    inputs = keras.Input((64,), name="pixels")
    hidden = keras.layers.Dense(4096, activation="relu")(inputs)
    hidden = keras.layers.Dense(1024, activation="relu")(hidden)
    keras.Model(inputs, keras.layers.Dense(10)(hidden)).export(f"{folder}/bucket/model", verbose=False)
    for number in range(8):
        pixels = np.zeros((4096, 64), np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 64)
        ids = np.arange(len(pixels)) + number * len(pixels)
        put_table(f"{folder}/in/part-{number:05d}.parquet", pa.table({"id": ids, "pixels": lists}))


def _run(warm: Warm, folder: str, port: str) -> list[Line]:
    """What the screen shows while the model streams, and once half of the rows are done."""
    argv = [f"--input={folder}/in/*.parquet", f"--output={folder}/out", "--keep=id", "--batch_size=256"]
    env = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "TERM": "xterm-256color", "CI": ""}
    shown = [_plain(f"$ {COMMAND}")]
    with Terminal(COLUMNS, LINES) as terminal:
        job = warm.start(["--model=gs://bench/model", *argv], terminal.path, env)
        try:
            for title, moment in MOMENTS.items():
                deadline = time.monotonic() + MOST_SECONDS
                while not _is_half(moment, terminal.text()):
                    if time.monotonic() > deadline or "Predictions of" in terminal.text():
                        raise RuntimeError(f"This was not seen: {title}\n{terminal.text()}")
                    time.sleep(0.05)
                shown += [[], _plain(f"# {title}"), *terminal.look(_lines)]
        finally:
            os.kill(job, signal.SIGKILL)
            warm.wait(job)
    return shown


def _is_half(moment: str, text: str) -> bool:
    found = re.search(moment, text)
    return found is not None and 2 * _number(found[1]) >= _number(found[2])


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _plain(text: str) -> Line:
    return [(text, Style(dim=text.startswith("#")))]


def _lines(screen: pyte.Screen) -> list[Line]:
    """All that have anything on them, as pieces of text with their styles."""
    cells = [[screen.buffer[y][x] for x in range(screen.columns)] for y in range(screen.lines)]
    used = [line for line in cells if any(cell.data.strip() for cell in line)]
    return [
        [
            ("".join(cell.data for cell in same), Style(color=_colour(colour), bold=bold))
            for (colour, bold), same in pieces
        ]
        for pieces in (groupby(line, key=attrgetter("fg", "bold")) for line in used)
    ]


def _picture_of(lines: list[Line]) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        for line in lines:
            console.print(Text.assemble(*line, no_wrap=True))
        return console.export_svg(title="A job on a terminal", theme=THEME, code_format=FORM, unique_id="headrace")


def _colour(name: str) -> str | None:
    """rich's name of the terminal emulator's."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return name.replace("brown", "yellow").replace("bright", "bright_")


if __name__ == "__main__":
    sys.exit(main())
