"""What a job writes beside the predictions, and reads again: claims, dead letters and the manifest."""
