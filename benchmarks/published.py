"""Whole experiments as their papers time them: ``fedjax-sim bench published`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["published"]()
