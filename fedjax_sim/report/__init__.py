"""One page about one or several runs, in a file that needs nothing beside it."""

from fedjax_sim.report._page import write_report

__all__ = ["write_report"]
