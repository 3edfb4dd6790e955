"""The turns that clients take in some rounds, and those that they have behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Turns(NamedTuple):
    """The turns of some rounds, ordered by round and then as they were drawn; what no device decides, ``int64[turns]``.

    ``round`` counts from the first of these rounds on, the other fields are those of ``Entry``; ``steps`` and ``before``
    are ``int64[turns, stages]``.
    """

    round: np.ndarray
    client: np.ndarray
    draw: np.ndarray
    replica: np.ndarray
    steps: np.ndarray
    before: np.ndarray

    def only(self, mask: np.ndarray | slice) -> Turns:
        return Turns(*(field[mask] for field in self))


class Past:
    """How many steps every client has taken in the rounds before one; nothing but a function of the roots and the round.

    It is counted from the first round on, and kept for the round after, which is asked for next.
    """

    def __init__(self) -> None:
        self._roots: tuple = ()
        self._round, self._steps = 0, np.zeros((0, 0, 0), np.int64)

    def before(
        self,
        drawn: Callable[..., Turns],
        roots: Sequence[tuple[int, ...]],
        round_: int,
        turns: Turns,
        population: int,
    ) -> np.ndarray:
        """Steps ``int64[turns, stages]`` that each turn's client has behind it, earlier draws of the round included."""
        if self._roots != tuple(roots) or round_ < self._round:
            self._roots, self._round = tuple(roots), 0
            self._steps = np.zeros((len(roots), population, turns.steps.shape[-1]), np.int64)
        for earlier in range(self._round, round_):
            done = drawn(roots, earlier, 1)
            np.add.at(self._steps, (done.replica, done.client), done.steps)
        self._round = round_
        return self._steps[turns.replica, turns.client] + _of_earlier_draws(turns)


def _of_earlier_draws(turns: Turns) -> np.ndarray:
    """Steps ``int64[turns, stages]`` that a client takes in this round before each of its turns."""
    order = np.lexsort((turns.draw, turns.client, turns.replica))
    client, replica, steps = turns.client[order], turns.replica[order], turns.steps[order]
    passed = np.cumsum(steps, axis=0) - steps
    new = np.r_[True, (client[1:] != client[:-1]) | (replica[1:] != replica[:-1])][: len(client)]
    first = np.maximum.accumulate(np.where(new, np.arange(len(client)), 0))
    earlier = np.empty_like(steps)
    earlier[order] = passed - passed[first]
    return earlier


def occurrences(values: np.ndarray) -> np.ndarray:
    """How-manieth occurrence each element is: ``[7, 3, 7]`` gives ``[0, 0, 1]``."""
    # Most often none occurs twice, and a sort that need not keep equal ones in order is the faster by far.
    if np.all(np.diff(np.sort(values))):
        return np.zeros(len(values), np.int64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    draws = np.empty(len(values), np.int64)
    draws[order] = np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))
    return draws


def runs(values: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """``values`` cut where ``labels``, which do not decrease, become larger."""
    return np.split(values, np.flatnonzero(np.diff(labels)) + 1) if len(values) else []


def room_for(turns: int, devices: int) -> int:
    """Turns that one of so many devices has room for: a quarter more than its share.

    Where one client has as much to do as fifty others, they must be able to go elsewhere: with their share alone two
    devices differed by 4 % and four by 10 % for sizes by a power law, with a quarter more by 1 %.
    """
    return turns if devices == 1 else min(turns, -(-5 * turns // (4 * devices)))


def levelled(steps: Sequence[int], devices: int) -> list[int]:
    """Device of each turn, so that all have about as many steps to take; turns are given longest first.

    Each goes to the device with the fewest steps so far, of those that have ``room_for`` it. Of equal devices the first.
    """
    room, load = [room_for(len(steps), devices)] * devices, [0] * devices
    open_, dealt = list(range(devices)), []
    for one in steps:
        device = min(open_, key=load.__getitem__)
        dealt.append(device)
        load[device] += one
        room[device] -= 1
        if not room[device]:
            open_.remove(device)
    return dealt
