"""What privacy costs in time: ``fedjax-sim bench privacy`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["privacy"]()
