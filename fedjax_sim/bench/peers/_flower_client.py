"""The clients of Flower's simulation; Ray's workers import this, so it holds what lives in one of them."""

import os

from _common import Job

JOB = Job(os.environ["FEDJAX_SIM_PEERS_JOB"])

import torch  # noqa: E402  after the job has chosen the core
from _torch_model import Model, inputs, loss  # noqa: E402
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

torch.set_num_threads(1)
MODEL = Model(JOB.layers, JOB.params, JOB.scale)
X, Y = inputs(JOB.columns["x"]), torch.from_numpy(JOB.columns["y"]).long()

app = ClientApp()


@app.train()
def train(message, context):
    """Trains the client that the message names."""
    client = int(message.content["config"]["client"])
    MODEL.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD([p for p in MODEL.parameters() if p.requires_grad], lr=JOB.learning_rate)
    start = int(JOB.offsets[client])
    for _ in range(JOB.epochs):
        for rows in JOB.slices(client):
            at = slice(start + rows.start, start + rows.stop)
            optimizer.zero_grad()
            loss(MODEL(X[at]), Y[at]).backward()
            optimizer.step()
    content = {
        "arrays": ArrayRecord(MODEL.state_dict()),
        "metrics": MetricRecord({"weight": JOB.weight(client)}),
    }
    return Message(content=RecordDict(content), reply_to=message)
