"""The recurrence of a long short-term memory over time."""

from fedjax_sim_kernels.lstm.hoisted import lstm

__all__ = ["lstm"]
