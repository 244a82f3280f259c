"""What the launcher runs: flags, checks, graph, runner, summary."""

from transforms.versions import __version__ as __version__
