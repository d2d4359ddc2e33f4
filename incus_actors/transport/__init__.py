"""ZeroMQ between members: codec, CURVE, lanes."""
