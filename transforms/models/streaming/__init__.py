"""The engine: from a list of tensor slots to tensors in memory, fetched in ranges, checked, and shared between the
processes of one machine. It knows nothing about model formats."""
