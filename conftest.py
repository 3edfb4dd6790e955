"""Imports the package before pytest collects doctests: a module that importlib mode met first would load twice."""

import fedjax_sim  # noqa: F401
