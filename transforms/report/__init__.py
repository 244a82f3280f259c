"""What a run did, as one HTML page. The graph's last step merges the accounts of all shards into it; no Beam here."""
