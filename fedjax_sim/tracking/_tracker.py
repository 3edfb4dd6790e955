"""What a tracker is, and one that must not end a run."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes the metrics of a run, one row per round and replica, while it runs.

    A row maps names to values: ``round`` (its index, from 0), ``seed`` and ``sweep`` where there are several replicas,
    and metrics. Later rows may have names that earlier ones lack.
    """

    def write(self, row: Mapping[str, Any]) -> None:
        """Takes one row."""
        ...

    def close(self) -> None:
        """Lets go of files and connections; closing again does nothing."""
        ...


class Lenient:
    """A tracker that a run can do without: the first exception turns it off, with one warning, and the run goes on.

    The tracker is made before it is wrapped, so a wrong argument or a missing package is an error before the run.

    Args:
      tracker: the one to guard.
      name: of it in the warning; its class if not given.

    Attributes:
      error: what turned the tracker off, ``None`` while it works.

    Example:
      >>> import warnings
      >>> from fedjax_sim.tracking import Lenient
      >>> class Full:
      ...     def write(self, row): raise OSError("no space left")
      ...     def close(self): pass
      >>> with Lenient(Full()) as tracker, warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     tracker.write({"round": 0})
      ...     tracker.write({"round": 1})
      >>> [str(warning.message) for warning in caught]
      ['the tracker Full is off for the rest of the run, which goes on: OSError: no space left']
    """

    def __init__(self, tracker: Tracker, name: str | None = None):
        self.tracker = tracker
        self.name = type(tracker).__name__ if name is None else name
        self.error: Exception | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Passes the row on; does nothing once the tracker is off."""
        if self.error is not None:
            return
        try:
            self.tracker.write(row)
        except Exception as error:
            self._turn_off(error)

    def close(self) -> None:
        """Closes the tracker; what it raises becomes the warning."""
        if self.error is not None:
            return
        try:
            self.tracker.close()
        except Exception as error:
            self._turn_off(error, close=False)

    def _turn_off(self, error: Exception, close: bool = True) -> None:
        self.error = error
        if close:
            # Its files and threads should not outlive it; one warning says enough.
            with contextlib.suppress(Exception):
                self.tracker.close()
        warnings.warn(
            f"the tracker {self.name} is off for the rest of the run, which goes on: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=3,
        )

    def __enter__(self) -> Lenient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
