"""The steps of a job as plain functions, without Beam: predict one shard, from its rows to its committed file."""
