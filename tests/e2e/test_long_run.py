"""Ten thousand rounds: every row is written, and memory does not grow with the rounds."""

from __future__ import annotations

import pytest

from fedjax_sim.bench import _host


@pytest.mark.slow
def test_ten_thousand_rounds():
    result = _host.measure(10_000)
    assert result["rows"] == 10_000
    memory = dict(result["resident_megabytes"])
    assert set(memory) == set(range(1000, 10_001, 1000))
    # What is kept of a round is a dozen numbers: about a megabyte in all.
    assert memory[10_000] - memory[3000] < 25, memory
