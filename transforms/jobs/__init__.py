"""The immutable description of a job, the input files it names, and the user functions that it runs."""
