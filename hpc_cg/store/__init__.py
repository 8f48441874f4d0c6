"""The zarr store of bead frames: its schema, its writer, its reader, its audit."""
