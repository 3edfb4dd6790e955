"""Matrix products whose gradients come in the order that the CPU is fast at."""

from fedjax_sim_kernels.products import panels
from fedjax_sim_kernels.products.contract import contract_p, product
from fedjax_sim_kernels.products.outer import Outer
from fedjax_sim_kernels.products.reference import product as reference

__all__ = ["Outer", "contract_p", "panels", "product", "reference"]
