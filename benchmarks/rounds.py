"""Time of a round: ``fedjax-sim bench rounds`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["rounds"]()
