"""Writers who are made when they are wanted."""

import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import experiment
from fedjax_sim.data import glyphs
from fedjax_sim.data._outlines import CHARACTERS, FONTS, SIZE, fields
from fedjax_sim.data.glyphs import _class_of


def test_every_character_of_every_font_has_a_shape():
    found = fields()
    assert found.shape == (len(FONTS), len(CHARACTERS), SIZE, SIZE) == (12, 62, 48, 48)
    assert np.isfinite(found).all()
    inside = (found > 0).mean(axis=(2, 3))
    assert inside.min() > 0.02 and inside.max() < 0.4
    # The longer side fills the body of 32, and nothing touches the edge.
    rows, columns = (found > 0).any(axis=3).sum(axis=2), (found > 0).any(axis=2).sum(axis=2)
    assert np.abs(np.maximum(rows, columns) - 32).max() <= 2
    # Characters differ, but for a sans-serif font's I and l, and letters whose small form is the capital's.
    shapes = [{row.tobytes() for row in (font > 0).reshape(62, -1)} for font in found]
    assert min(map(len, shapes)) >= 58


def test_a_writer_depends_on_the_seed_and_the_number_alone():
    few, many = glyphs(clients=3, seed=5), glyphs(clients=1000, seed=5)
    for client in (0, 2):
        for name, column in few.train.client(client).items():
            np.testing.assert_array_equal(column, many.train.client(client)[name])
    np.testing.assert_array_equal(few.train.sizes, many.train.sizes[:3])
    assert few.test.ids.tolist() == list(range(3, 53))
    np.testing.assert_array_equal(few.test.client(0)["x"], many.train.client(3)["x"])
    other = glyphs(clients=3, seed=6).train.client(0)
    assert other["x"].shape != few.train.client(0)["x"].shape or not np.array_equal(
        other["x"], few.train.client(0)["x"]
    )


def test_images_look_like_those_of_emnist():
    data = glyphs(clients=30).train.in_memory
    x = data.columns["x"] / 255
    assert x.dtype == np.float64 and data.columns["x"].dtype == np.uint8
    assert 0.05 < x.mean() < 0.35 and x.max() > 0.9
    assert (x == 0).mean() > 0.5  # a black ground
    border = np.concatenate([x[:, :2].ravel(), x[:, -2:].ravel()])
    assert border.mean() < 0.05


@pytest.mark.parametrize(("classes", "digits"), [(10, 1.0), (47, 0.5), (62, 0.5)])
def test_classes_are_those_of_emnist(classes, digits):
    data = glyphs(clients=60, classes=classes)
    y = np.concatenate([data.train.client(client)["y"] for client in range(60)])
    assert data.classes == classes and set(y) == set(range(classes))
    assert (y < 10).mean() == pytest.approx(digits, abs=0.02)


def test_the_balanced_classes_merge_letters_of_one_shape():
    found = _class_of(47)
    assert len(set(found)) == 47
    assert found[CHARACTERS.index("c")] == found[CHARACTERS.index("C")] == 12
    # EMNIST's own mapping: after the capitals come a, b, d, e, f, g, h, n, q, r, t.
    small = [CHARACTERS[np.flatnonzero(found == index)[0]] for index in range(36, 47)]
    assert "".join(small) == "abdefghnqrt"


def test_writers_have_hands():
    """Two halves of a writer's digits are more alike than those of two writers: stroke width, slant, size."""
    data = glyphs(clients=20, classes=10)
    halves = []
    for client in range(20):
        x = data.train.client(client)["x"][..., 0].astype(float)
        halves.append((x[::2].mean(axis=0), x[1::2].mean(axis=0)))
    own = [np.linalg.norm(a - b) for a, b in halves]
    other = [np.linalg.norm(halves[i][0] - halves[i - 1][1]) for i in range(20)]
    assert np.median(own) < 0.7 * np.median(other)


def test_difficulty_makes_characters_hard_to_read():
    def error(difficulty):
        """Of the class whose mean image lies nearest."""
        parts = glyphs(clients=25, classes=10, test_clients=8, difficulty=difficulty)
        (x, y), (a, b) = (
            (part.in_memory.columns["x"].reshape(-1, 784) / 255, part.in_memory.columns["y"])
            for part in (parts.train, parts.test)
        )
        means = np.stack([x[y == label].mean(axis=0) for label in range(10)])
        nearest = np.argmin(((a[:, None] - means) ** 2).sum(axis=-1), axis=1)
        return np.mean(nearest != b)

    easy, usual = error(0.3), error(1.0)
    assert easy < 0.2 < usual < 0.8


def test_a_million_writers_need_no_memory():
    data = glyphs(clients=1_000_000)
    assert data.train.num_examples > 190_000_000
    assert data.train.client(999_999)["y"].max() < 62


def test_writers_train_and_are_evaluated():
    data = glyphs(clients=200, classes=10, test_clients=3)
    task = fs.tasks.classification(fs.models.linear(classes=10))
    sim = fs.Simulation(
        fs.algorithms.fedavg(task, optax.sgd(0.05)), data.train, cohort=fs.cohorts.uniform(3),
        local=fs.LocalWork(epochs=1, batch_size=20), rounds_per_chunk=5,
    )  # fmt: skip
    state, history = sim.run(sim.init(seed=0), 15, evaluate_on=data.test, every=5)
    assert history.last("accuracy").value > history.evaluations[5]["eval"].examples["accuracy"] - 0.02
    assert sim.describe(state)["data"]["clients"] == 200
    dealt = fs.data.repartition(glyphs(clients=4, test_clients=1), fs.partitions.dirichlet(6, 0.5))
    assert dealt.train.num_clients == 6


def test_settings_name_them():
    found = experiment.load(
        changes=["data={name='glyphs',clients=40,test_clients=2}", "model=linear", "cohort.size=2"]
    )
    assert found.federated.classes == 62
    _, history = found.simulation().run(found.simulation().init(0), rounds=2)
    assert history.rounds == 2


def test_writers_are_tested_on_characters_of_their_own():
    data, whole = glyphs(clients=5, test_fraction=0.25), glyphs(clients=5).train
    assert data.test.ids.tolist() == data.train.ids.tolist() == list(range(5))
    assert data.test.sizes.tolist() == np.rint(0.25 * whole.sizes).tolist()
    for writer in range(5):
        both = [image.tobytes() for part in (data.train, data.test) for image in part.client(writer)["x"]]
        assert sorted(both) == sorted(image.tobytes() for image in whole.client(writer)["x"])


def test_settings_hold_writers_out():
    found = experiment.load(
        changes=["data={name='glyphs',clients=1000000,test_fraction=0.2}", "unseen={fraction=0.1,seed=0}"]
    )
    sets = found.evaluation_sets()
    assert [sets[name].num_clients for name in ("eval", "unseen")] == [900_000, 100_000]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clients": 0}, "clients is 0"),
        ({"classes": 26}, "classes is 26, expected one of 10, 47, 62"),
        ({"difficulty": 0.0}, "difficulty is 0.0"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
    ],
)
def test_what_cannot_be_written(options, match):
    with pytest.raises(ValueError, match=match):
        glyphs(**options)
