"""FedAvg as a plain PyTorch loop: the model stays where it is, clients and batches one after the other."""

import sys

from _common import Job

job = Job(sys.argv[1])

import torch  # noqa: E402  after the job has chosen the core
from _torch_model import Model, inputs, loss  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    model = Model(job.layers, job.params, job.scale)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=job.learning_rate)
    x, y = inputs(job.columns["x"]), torch.from_numpy(job.columns["y"]).long()

    for cohort in job.schedule():
        job.start_round()
        broadcast = [w.detach().clone() for w in weights]
        sums, total = [torch.zeros_like(w) for w in weights], 0.0
        for client in cohort:
            with torch.no_grad():
                for w, value in zip(weights, broadcast, strict=True):
                    w.copy_(value)
            start = int(job.offsets[client])
            for _ in range(job.epochs):
                for rows in job.slices(client):
                    at = slice(start + rows.start, start + rows.stop)
                    optimizer.zero_grad()
                    loss(model(x[at]), y[at]).backward()
                    optimizer.step()
            weight = job.weight(client)
            total += weight
            with torch.no_grad():
                for added, w, value in zip(sums, weights, broadcast, strict=True):
                    added.add_(w - value, alpha=weight)
        with torch.no_grad():
            for w, value, added in zip(weights, broadcast, sums, strict=True):
                w.copy_(value + added / total)
        job.end_round()
    job.finish(model.arrays(), ["torch", "numpy"])


main()
