"""One node, start to finish: the pod, its freeze, its dump, its restore. Knows no MPI and no other node."""
