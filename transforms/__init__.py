"""What the workers run. Its import name is `headrace.transforms`; the public names are in `headrace`.

Imports go down this list only: beam, steps, predicting, report, output, jobs, columns, parquet, shards, models,
storage; and the modules next to these folders (errors, versions, progress, read_ahead), which import none of them.
"""

from __future__ import annotations

if __name__ == "transforms":
    raise ModuleNotFoundError(
        "No module named 'transforms': import headrace.transforms, or the public names of headrace"
    )
