"""What a job writes in addition to the predictions, and reads again: claims, dead letters and the manifest."""
