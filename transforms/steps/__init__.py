"""The steps of a job as plain functions, without Beam: plan the shards, predict one of them, finish the job."""
