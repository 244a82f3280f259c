"""Keras models: `.keras` files and folders, legacy HDF5, and config.json with weights. Built without weights, then filled with
streamed tensors."""
