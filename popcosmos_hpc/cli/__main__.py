"""`python -m popcosmos_hpc.cli`."""

from popcosmos_hpc.cli import main

main()
