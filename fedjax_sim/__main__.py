"""``python -m fedjax_sim`` is the command ``fedjax-sim``."""

from fedjax_sim.cli import main

if __name__ == "__main__":
    main()
