"""A set on disk, larger than memory: ``fedjax-sim bench streaming`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["streaming"]()
