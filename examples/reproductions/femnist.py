"""FEMNIST by writer: handwritten characters of 62 classes, every client a person, FedAvg with momentum at the server.

python examples/reproductions/femnist.py PATH
python examples/reproductions/femnist.py glyphs

PATH is a folder of LEAF's JSON or a flat .npz file with arrays x, y, client and split. LEAF (Caldas et al. 2019) takes 75 % on
the test images of a 5 % sample of FEMNIST as its threshold of a trained model (its tutorial: FedAvg at step size 0.004, 3 or
35 writers a round, up to 2,000 rounds, another sample of writers). Here the model is the smaller one of federated EMNIST
benchmarks, 10 writers a round, and the images are turned round so that ink is bright. Writers without training images
stand for people that the model has never met; mind which characters they wrote: the share of digits is printed. With
``glyphs`` the same is done with 300 writers of that set, a fifth of whose characters are for testing, to see how hard it is.
"""

import argparse
import time

import numpy as np
import optax

import fedjax_sim as fs

THRESHOLD = 0.75


def bright_ink(part: fs.ClientData) -> fs.ClientData:
    """Bright on dark, as in MNIST, with a channel axis."""
    x = part.columns["x"]
    if x.ndim == 2:  # LEAF's lists of 784 numbers from 0 to 1
        x = np.rint(255 * x).astype(np.uint8)
    columns = {"x": 255 - x.reshape(-1, 28, 28, 1), "y": part.columns["y"].astype(np.int32)}
    return fs.ClientData(columns, part.offsets, part.ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="LEAF's folder, a flat .npz file, or glyphs")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--every", type=int, default=50, help="rounds between evaluations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    if options.path == "glyphs":
        data = fs.data.glyphs(clients=300, test_fraction=0.2)
        train, test = data.train.in_memory, data.test.in_memory
    else:
        data = fs.data.npz(options.path) if options.path.endswith(".npz") else fs.data.leaf(options.path)
        train, test = bright_ink(data.train), bright_ink(data.test)
    sets = {"test": test}
    met = np.isin(test.ids, train.ids[train.sizes > 0])
    if not met.all():
        sets = {"test": test.select(met), "unmet": test.select(~met)}
    train = train.select(train.sizes > 0)
    print(train)
    for name, part in {"train": train, **sets}.items():
        print(f"{name:<6}{part.num_examples:>7,} images, {np.mean(part.columns['y'] < 10):.0%} digits")

    task = fs.tasks.classification(fs.models.emnist_cnn(classes=62))
    algorithm = fs.algorithms.fedavgm(task, client=optax.sgd(0.05), momentum=0.9)
    sim = fs.Simulation(
        algorithm,
        train,
        cohort=fs.cohorts.uniform(10),
        local=fs.LocalWork(epochs=1, batch_size=20),
        rounds_per_chunk=5,
    )
    started = time.perf_counter()

    def report(progress) -> None:
        done = progress.done
        if done % options.every == 0 or done == options.rounds:
            found = progress.history().evaluations[done]
            shown = ", ".join(
                f"{name} {e.examples['accuracy']:.3f} ({e.clients['accuracy']['worst_decile']:.3f} worst decile of writers)"
                for name, e in found.items()
            )
            print(f"round {done:>4}  {time.perf_counter() - started:>5.0f} s  {shown}", flush=True)

    _, history = sim.run(
        sim.init(options.seed), options.rounds, evaluate_on=sets, every=options.every, callbacks=[report]
    )
    found = [(done, results["test"].examples["accuracy"]) for done, results in history.evaluations.items()]
    reached = next((done for done, accuracy in found if accuracy >= THRESHOLD), None)
    print(
        f"{THRESHOLD:.0%} of LEAF's tutorial: {f'reached by round {reached}' if reached else 'not reached'}"
    )


if __name__ == "__main__":
    main()
