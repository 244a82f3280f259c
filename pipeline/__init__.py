"""What the launcher runs: flags, checks, graph, runner, summary."""

__version__ = "0.1.0"
