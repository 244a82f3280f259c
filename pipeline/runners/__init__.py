"""The job as a Beam graph, and how it is launched: in this process, on Dataflow, or on a portable runner."""
