"""The Shard: the unit of work, of output and of resuming. Its names and what is measured while it is computed."""
