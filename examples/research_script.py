"""A research script: FedAvg on handwritten digits that are spread unevenly over 50 clients.

python examples/research_script.py --rounds 100
"""

import argparse

import optax

import fedjax_sim as fs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds

    data = fs.data.load("digits", clients=50, alpha=0.3, seed=0)
    task = fs.tasks.classification(fs.models.cnn(classes=10))
    algorithm = fs.algorithms.fedavg(task, client=optax.sgd(0.1), server=optax.sgd(1.0))
    sim = fs.Simulation(
        algorithm,
        data.train,
        cohort=fs.cohorts.uniform(10),
        local=fs.LocalWork(epochs=1, batch_size=20),
    )
    state, history = sim.run(sim.init(seed=0), rounds=rounds)
    print(f"training loss {history['loss'][0]:.3f} in the first round, {history['loss'][-1]:.3f} in the last")
    print(sim.evaluate(state, data.test))
    print(history.costs)


if __name__ == "__main__":
    main()
