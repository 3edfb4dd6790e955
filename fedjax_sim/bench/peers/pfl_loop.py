"""FedAvg with pfl-research: its simulated backend, federated averaging, and the job's cohorts as the user sampler."""

import sys

from _common import Job

job = Job(sys.argv[1])

import numpy as np  # noqa: E402  after the job has chosen the core
import torch  # noqa: E402
from _torch_model import Model, inputs, loss  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByDatapoints  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam import NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402


class PflModel(Model):
    """With the two methods that pfl asks for."""

    def loss(self, x, y):
        return loss(self(x), y)

    def metrics(self, x, y):
        # Iteration 0 is a multiple of every frequency of evaluation: this is called in the first round, and no later.
        return {"examples": Weighted(len(x), 1)}


class Clock(TrainingProcessCallback):
    def on_train_begin(self, *, model):
        job.start_round()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        job.end_round()
        job.start_round()
        return False, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    module = PflModel(job.layers, job.params, job.scale)
    x, y = inputs(job.columns["x"]), torch.from_numpy(job.columns["y"]).long()
    users = {}
    for client in np.unique(job.schedule()).tolist():
        rows = slice(int(job.offsets[client]), int(job.offsets[client + 1]))
        users[client] = Dataset([x[rows], y[rows]], user_id=str(client))
    order = iter(np.concatenate(job.schedule()).tolist())
    data = FederatedDataset(users.__getitem__, lambda: next(order))
    backend = SimulatedBackend(data, data, [WeightByDatapoints()] if job.weights == "examples" else [])
    trained = [p for p in module.parameters() if p.requires_grad]
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(trained, lr=1.0))
    rounds = len(job.schedule())
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=len(job.schedule()[0]),
            val_cohort_size=None,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=job.epochs,
            local_learning_rate=job.learning_rate,
            local_batch_size=job.batch_size,
        ),
        model_eval_params=None,
        callbacks=[Clock()],
    )
    job.finish(module.arrays(), ["pfl", "torch", "numpy"])


main()
