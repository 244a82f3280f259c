"""Parquet files read and written as streams of record batches, with memory bounded by the batch. The guard checks what
Arrow would believe of a hostile file."""
