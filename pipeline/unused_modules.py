"""What Beam and TensorFlow import although a job in this process does not use it: clients of clouds, pandas, SciPy."""

from __future__ import annotations

from collections.abc import Sequence

from .flags.flags import COMMANDS, flags_of

# All of them are optional for the module that imports them.
_UNUSED = (
    "apache_beam.io.aws.s3filesystem",
    "apache_beam.io.azure.blobstoragefilesystem",
    "apache_beam.io.gcp.bigquery",
    "apache_beam.io.gcp.gcsfilesystem",
    "apache_beam.io.hadoopfilesystem",
    "apitools",
    "google.cloud.dataflow",
    "pandas",
    # TensorFlow's: what finds TPUs, and data for Keras 2.
    "googleapiclient",
    "scipy",
)
# Modules that these name may use all of Beam and TensorFlow.
_NAME_MODULES = {"custom_objects", "import_module", "postprocess", "preprocess", "user_package"}


def unused_modules(argv: Sequence[str]) -> tuple[str, ...]:
    """Nothing where a flag is Beam's own, which another runner or its stores may need, or names a module of the user."""
    flags = argv[1:] if argv[0] in COMMANDS else argv
    known = {f"--{action.dest}" for action in flags_of("")} - {f"--{name}" for name in _NAME_MODULES}
    named = {flag.partition("=")[0] for flag in flags if flag.startswith("-")}
    return _UNUSED if named <= known else ()
