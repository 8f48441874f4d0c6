"""What simulated and reference frames say: coordinates, free energies, divergences, floors, estimates."""
