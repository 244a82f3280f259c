"""That all rows of a job go into one output: `--compact --single_file`."""

from __future__ import annotations

from headrace.transforms.errors import InvalidRequest
from headrace.transforms.jobs.input_files import MOST_JOINED, Survey

from ..flags.request import Request

_AFTERWARDS = "leave --single_file out, and join the outputs afterwards: docs/one_file.md shows how"


def check_single_file(request: Request, inputs: Survey) -> None:
    """Raises `InvalidRequest` where the input is larger than one output may join. A file of another schema fails
    the job when its footer is read.
    """
    files = "1 file" if inputs.files == 1 else f"{inputs.files:,} files"
    if inputs.nbytes > request.shard_bytes:
        raise InvalidRequest(
            f"--single_file: the input is too large for one output of --shard_bytes={request.shard_bytes}",
            expected=f"{request.shard_bytes:,} bytes or less",
            found=f"{inputs.nbytes:,} bytes in {files}",
            cure=f"Raise it, as --shard_bytes={inputs.nbytes}: one worker then predicts all rows. Or {_AFTERWARDS}",
        )
    if inputs.files > MOST_JOINED:
        raise InvalidRequest(
            "--single_file: the input has too many files for one output",
            expected=f"{MOST_JOINED:,} or fewer",
            found=files,
            cure=f"L{_AFTERWARDS[1:]}",
        )
    if len(inputs.sources) > 1:
        raise InvalidRequest(
            "--single_file: the input is in several folders, whose rows are never joined",
            expected="files of one folder",
            found=f"{files}, the first {inputs.first.uri}",
            cure=f"L{_AFTERWARDS[1:]}",
        )
