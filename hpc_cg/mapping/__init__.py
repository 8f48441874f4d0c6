"""From atoms to beads: the map, the rigid groups it must respect, and its force half."""
