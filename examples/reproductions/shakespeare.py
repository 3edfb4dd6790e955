"""The character LSTM of federated Shakespeare, by speaking role: McMahan et al. 2017, section 3.

python examples/reproductions/shakespeare.py PATH/roles.jsonl.gz

The paper's model and local work: embedding of 8, two LSTMs of 256, windows of 80 characters, batches of 10 windows, SGD.
What is reduced, so that two CPU cores suffice: roles with 800 characters and more, 10 of them a round instead of a
tenth of all, one pass a round instead of five, 20 steps a round at most, and the test on 2,000 windows of the held-back lines.
--full takes the reductions back: all roles with two lines, a tenth a round, five passes, the whole test. It takes minutes a round on
two cores: with --checkpoints FOLDER it can be cut off and called again.

The plays are another edition than the paper's (its roles are 1,146, these are 1,230), so compare the shape of the curve and
not its digits.
"""

from __future__ import annotations

import argparse

import numpy as np
import optax

import fedjax_sim as fs

PUBLISHED = """rounds to 54 % accuracy in McMahan et al. 2017 (table 2, LSTM; learning rates tuned; another edition):
  FedSGD   2,488 with examples dealt IID   3,906 by role
  FedAvg     192 with examples dealt IID      41 by role   (5 passes, batches of 10, a tenth of 1,146 roles a round)"""


def long_enough(data: fs.data.Federated, characters: int) -> fs.data.Federated:
    """Only roles whose training and test lines together have so many characters."""
    said = np.zeros(data.train.num_clients)
    for part in (data.train, data.test):
        predicted = (np.asarray(part.columns["y"]) >= 0).sum(axis=1)
        said += np.bincount(np.repeat(np.arange(part.num_clients), part.sizes), predicted, part.num_clients)
    kept = said >= characters
    note = f"{kept.sum()} of {len(kept)} roles have at least {characters} characters"
    return fs.data.Federated(
        data.train.select(kept), data.test.select(kept), data.name, data.classes, (*data.notes, note)
    )


def some(data: fs.data.ClientData, windows: int, seed: int = 0) -> fs.data.ClientData:
    """So many examples, drawn evenly from all clients'."""
    rows = np.zeros(data.num_examples, bool)
    rows[np.random.default_rng(seed).permutation(data.num_examples)[:windows]] = True
    return data.filter(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="roles.jsonl.gz, a plain play, or LEAF's JSON; see fs.data.shakespeare")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--every", type=int, default=10, help="rounds from one evaluation to the next")
    parser.add_argument("--learning-rate", type=float, default=1.0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--test-windows", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="the paper's cohort and local work")
    parser.add_argument("--checkpoints", help="folder; a run that was cut off goes on from there")
    options = parser.parse_args()

    data = fs.data.shakespeare(options.path)
    test = data.test
    if options.full:
        cohort, local = round(0.1 * data.train.num_clients), fs.LocalWork(epochs=5, batch_size=10)
    else:
        data = long_enough(data, 800)
        test = some(data.test, options.test_windows)
        cohort, local = 10, fs.LocalWork(epochs=1, batch_size=10, max_steps=20)
    print(data.train, *data.notes, sep="\n")

    encoder = fs.data.text.characters()
    task = fs.tasks.classification(
        fs.models.char_lstm(encoder.size, hidden=options.hidden),
        metrics={
            "accuracy": fs.metrics.accuracy(),  # the ends of speeches count, as in the field's code
            "characters": fs.metrics.accuracy(leave_out=encoder.no_words),
        },
    )
    algorithm = fs.algorithms.fedavg(task, client=optax.sgd(options.learning_rate))
    sim = fs.Simulation(algorithm, data.train, cohort=fs.cohorts.uniform(cohort), local=local)
    print(f"{'round':>6}{'loss':>9}{'accuracy':>10}{'characters alone':>18}   of {test.num_examples} windows")
    shown = 0

    def show(history: fs.History) -> None:
        """The evaluations that are new; of a run that goes on, those of its checkpoint first."""
        nonlocal shown
        for done, sets in list(history.evaluations.items())[shown:]:
            found = sets["test"].examples
            print(
                f"{done:>6}{found['loss']:>9.3f}{found['accuracy']:>10.3f}{found['characters']:>18.3f}",
                flush=True,
            )
            shown += 1

    _, history = sim.run(
        sim.init(seed=options.seed),
        options.rounds,
        evaluate_on={"test": test},
        every=options.every,
        callbacks=[lambda progress: show(progress.history())],
        checkpoints=fs.Checkpoints(options.checkpoints, every=options.every) if options.checkpoints else None,
    )
    show(history)
    print(PUBLISHED)


if __name__ == "__main__":
    main()
