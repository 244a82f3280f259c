"""The Beam transforms and the ModelHandler. Only this folder of `transforms` imports Beam: a transform wires plain
functions from the folders below."""
