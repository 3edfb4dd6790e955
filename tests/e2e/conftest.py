"""Fixtures that several files of this folder use."""

from e2e.command_line import own_folder  # noqa: F401
