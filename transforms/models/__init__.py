"""Bytes somewhere to a model in memory. Knows nothing of Beam; loads TensorFlow only when a model is loaded."""
