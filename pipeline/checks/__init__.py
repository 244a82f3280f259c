"""Everything that is checked and never changed: the request against the model and the data before a run, the state of
the output folder, and a finished output afterwards."""
