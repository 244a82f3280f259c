"""The command's log on standard error: lines of text, or with --log_format=json one JSON object on each line.

Each object has `time` (RFC 3339, UTC), `severity` and `message`, the names that Cloud Logging looks for, and `event`, which
determines the other keys. docs/watching.md lists them, and a test checks that list.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback as tracebacks
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from types import TracebackType
from typing import Any, TextIO

from headrace.transforms.errors import HeadraceError
from headrace.transforms.printable import printable, printable_json, printable_lines

_SEVERITIES = {logging.INFO: "INFO", logging.WARNING: "WARNING", logging.ERROR: "ERROR", logging.CRITICAL: "CRITICAL"}
_as_json = False


def wants_json(argv: Sequence[str]) -> bool:
    """Whether logs are JSON. Read before the flags are parsed, because errors in them are logged in the same form."""
    said = [value for flag, value in pairwise(argv) if flag == "--log_format"]
    said += [flag.partition("=")[2] for flag in argv if flag.startswith("--log_format=")]
    return said[-1:] == ["json"]


def set_up_logs(*, as_json: bool, verbose: bool) -> None:
    """Also of other packages' log records; Beam's and TensorFlow's are held back unless `verbose`."""
    global _as_json
    _as_json = as_json
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _JsonLines)]:
        root.removeHandler(handler)
    level = logging.INFO if verbose else logging.WARNING
    sys.excepthook = _log_uncaught
    if as_json:
        root.addHandler(_JsonLines())
        root.setLevel(level)
        logging.captureWarnings(True)
    else:
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", handlers=[_Lines()])
    if not verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        # Beam logs each traceback before headrace reports its cause.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        # So do portable runners, by the root logger.
        root.addFilter(_not_of_a_portable_runner)
        # Beam logs all of Prism's messages here, whatever their level.
        logging.getLogger("PrismJobServer").addFilter(lambda _: False)


def own_process() -> None:
    """Formats what Python itself prints about warnings and threads too, where no other program uses this process."""
    warnings.showwarning = _show_warning
    threading.excepthook = _log_uncaught_in_thread


def _not_of_a_portable_runner(record: logging.LogRecord) -> bool:
    return record.module != "portable_runner"


def log_event(event: str, message: str, severity: int = logging.INFO, **keys: Any) -> None:
    """The message is one line of text; a line feed in it is a name's."""
    line = _object(event, message, severity, **keys) if _as_json else printable(message)
    print(line, file=sys.stderr, flush=True)


def log_interrupted(event: str, message: str, **keys: Any) -> None:
    """A warning below what the terminal itself wrote for Ctrl-C."""
    if not _as_json:
        print(file=sys.stderr)
    log_event(event, message, logging.WARNING, **keys)


def log_error(what: str, error: HeadraceError, code: int, *, verbose: bool) -> None:
    """`what` has become of the command; `code` is its exit code. `verbose`: with the traceback."""
    traceback = "".join(tracebacks.format_exception(error)) if verbose else ""
    if not _as_json:
        print(f"{printable_lines(traceback)}{what}: {printable(str(error))}", file=sys.stderr, flush=True)
        return
    keys = {key: getattr(error, key) for key in ("what", "expected", "found", "cure")}
    keys |= {"error": type(error).__name__, "exit_code": code} | ({"traceback": traceback} if traceback else {})
    log_event("error", f"{what}: {error}", logging.ERROR, **keys)


def log_at_once(event: str, message: str) -> None:
    """From within a signal's handler: past Python's own buffers, whose owner it may have interrupted."""
    text = _object(event, message, logging.WARNING) if _as_json else f"\n{printable(message)}"
    os.write(2, f"{text}\n".encode())


def log_raw(data: bytes) -> None:
    """What native code wrote to file descriptor 2 while it was redirected."""
    if not _as_json:
        os.write(2, printable_lines(data.decode(errors="backslashreplace")).encode())
        return
    for line in data.decode(errors="replace").splitlines():
        log_event("log", line, logging.WARNING, logger="native")


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what is written to file descriptor 2 in the block; an exception brings it out again. TensorFlow's C++ writes
    there during its import, before it applies any log level.
    """
    sys.stderr.flush()
    kept, real = os.memfd_create("stderr"), os.dup(2)
    os.dup2(kept, 2)
    try:
        yield
    except BaseException:
        os.dup2(real, 2)
        os.lseek(kept, 0, os.SEEK_SET)
        with open(kept, "rb", closefd=False) as held:
            log_raw(held.read())
        raise
    finally:
        os.dup2(real, 2)
        os.close(real)
        os.close(kept)


def is_json() -> bool:
    return _as_json


def _object(event: str, message: str, severity: int, **keys: Any) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = {"time": now, "severity": _SEVERITIES.get(severity, "DEBUG"), "event": event, "message": message} | keys
    return printable_json(entry, default=str)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    lines = "".join(tracebacks.format_exception(kind, error, trace))
    if not _as_json:
        print(printable_lines(lines), end="", file=sys.stderr, flush=True)
        return
    log_event("error", f"{kind.__name__}: {error}", logging.CRITICAL, error=kind.__name__, exit_code=1, traceback=lines)


def _log_uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None and not issubclass(found.exc_type, SystemExit):
        _log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    print(printable_lines(text), end="", file=file or sys.stderr, flush=True)


class _Lines(logging.Handler):
    """Writes to the present standard error: a display replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable_lines(self.format(record)), file=sys.stderr, flush=True)


class _JsonLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        keys: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            keys["traceback"] = logging.Formatter().formatException(record.exc_info)
        log_event("log", record.getMessage(), record.levelno, **keys)
