"""What a run was, as one HTML page: put together by the graph's last step, from what each shard told. No Beam."""
