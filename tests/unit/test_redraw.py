"""Many clients of few: whose examples they are, and that they do not depend on who else there is."""

import numpy as np
import pytest

import fedjax_sim as fs

OLD = fs.ClientData({"x": np.arange(8), "y": np.array([0] * 3 + [2] * 5)}, [0, 3, 3, 8], ids=[0, 1, 2])
DATA = fs.data.Federated(OLD, OLD, "eight")


def test_a_client_holds_examples_of_one_old_client():
    many = fs.data.redraw(DATA, clients=40, examples=4, seed=1).train.in_memory
    assert many.num_clients == 40 and set(many.sizes) == {4}
    for client in range(40):
        x, y = many.client(client).values()
        assert set(y) == {(0, 2)[client % 2]}  # the second old client has none
        assert set(x) <= set(OLD.client(int(y[0]))["x"])
        assert len(set(x)) == 4 or y[0] == 0  # of five, four different ones; of three, with replacement


def test_a_client_depends_on_its_number_and_the_seed_alone():
    draw = lambda clients, seed: fs.data.redraw(DATA, clients, 4, seed).train  # noqa: E731
    few, many = draw(7, 0), draw(10**6, 0)
    for client in range(7):
        np.testing.assert_array_equal(few.client(client)["x"], many.client(client)["x"])
    assert any((few.client(c)["x"] != draw(7, 1).client(c)["x"]).any() for c in range(7))
    assert any((many.client(c)["x"] != many.client(c + 2)["x"]).any() for c in range(6))


def test_what_is_said_and_refused():
    many = fs.data.redraw(DATA, clients=40, examples=4)
    assert "nobody's examples are new" in many.notes[-1] and many.test is OLD
    with pytest.raises(ValueError, match="clients is 0"):
        fs.data.redraw(DATA, 0, 1)
    with pytest.raises(ValueError, match="examples is 0"):
        fs.data.redraw(DATA, 1, 0)
    nothing = fs.ClientData({"x": np.arange(0), "y": np.arange(0)}, [0, 0], ids=[0])
    with pytest.raises(ValueError, match="no training example"):
        fs.data.redraw(fs.data.Federated(nothing, nothing, "none"), 1, 1)
