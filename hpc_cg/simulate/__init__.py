"""Langevin dynamics of many replicas at once, in blocks that are recorded, resumed and exported."""
