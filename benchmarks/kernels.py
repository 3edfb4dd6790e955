"""Time of each form of each kernel: ``fedjax-sim bench kernels`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["kernels"]()
