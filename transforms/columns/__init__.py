"""Arrow columns to tensors, and tensors to Arrow columns. All that a schema and a signature can decide is decided once,
in a plan, before the first row."""
