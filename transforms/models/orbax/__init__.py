"""Orbax checkpoints: which step, which arrays, and the bytes of each, from the store alone. No name of Keras is known here."""
