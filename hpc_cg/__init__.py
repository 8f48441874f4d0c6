"""From an archive of all-atom trajectories to a coarse-grained force field that has been simulated and judged.

The library knows no scheduler and no MPI. Arrays are in nm, ps, u, kJ/mol and K everywhere (``hpc_cg.units``).
"""

__version__ = "0.1.0"
