"""Numbers and waiting as the command line shows them."""

import time

import pytest

from fedjax_sim.cli import _screen


@pytest.mark.parametrize(
    ("value", "says"), [(0, "0 "), (950, "950 "), (104_000, "104.0 k"), (220.8e6, "220.8 M"), (34.7e9, "34.7 G")]
)  # fmt: skip
def test_amounts_have_the_unit_in_which_they_can_be_read(value, says):
    assert _screen._scaled(value) == says


@pytest.mark.parametrize(("value", "says"), [(3.04, "3.0 s"), (0.26, "0.3 s"), (0.0123, "12.3 ms")])
def test_short_times_are_in_milliseconds(value, says):
    assert _screen._seconds(value) == says


def test_what_takes_long_before_a_run_is_said(monkeypatch, capsys):
    monkeypatch.setattr(_screen, "_PATIENCE", 0.01)
    with _screen.Watch(False, "pricing ..."):
        time.sleep(0.5)
    with _screen.Watch(True, "never"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "pricing ...\n"
