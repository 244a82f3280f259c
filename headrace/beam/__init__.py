"""What Beam finds by name: `headrace.beam.yaml`. Importing headrace does not import this."""
