"""Lanes, cohort, devices, population: ``fedjax-sim bench streaming`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["streaming"]()
