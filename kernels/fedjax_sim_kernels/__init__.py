"""Operations that ``vmap`` over clients and compiled loops make slow, rewritten; depends on jax alone.

Each operation is a package: ``reference`` says what it computes, the other modules are faster forms of the same
function, ``shapes`` is the list that tests and benchmarks share. The package's own function is the form to use.
"""

from fedjax_sim_kernels import conv, order, pooling
from fedjax_sim_kernels.lstm import lstm
from fedjax_sim_kernels.rewrite import as_written, client_batched

__all__ = ["as_written", "client_batched", "conv", "lstm", "order", "pooling"]
