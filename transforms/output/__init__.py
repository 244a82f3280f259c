"""What a job writes beside the predictions, and reads again: dead letters and the manifest."""
