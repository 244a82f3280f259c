"""SavedModels of TensorFlow 2 and 1: the graph is read by TensorFlow, the weights are streamed."""
