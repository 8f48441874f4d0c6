"""The stages: each reads the sealed products before it, writes only its own folder, and seals it.

Stage files keep heavy imports (torch, zarr, mdtraj, matplotlib) inside functions, so that reading a study or its status
costs no time; they never import one another: they meet through folders.
"""
