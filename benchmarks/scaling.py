"""Lanes, cohort, devices, population: ``fedjax-sim bench scaling`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["scaling"]()
