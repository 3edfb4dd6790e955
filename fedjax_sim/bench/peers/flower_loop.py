"""FedAvg with Flower: its message strategy, and its simulation on Ray with one actor of one CPU.

There are as many virtual nodes as a cohort has clients; a message names the client that its node stands for.
"""

import os
import sys
import time

os.environ["FEDJAX_SIM_PEERS_JOB"] = sys.argv[1]

from _flower_client import JOB, MODEL, app
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


class Strategy(FedAvg):
    """Federated averaging over the job's cohorts."""

    def configure_train(self, server_round, arrays, config, grid):
        cohort = JOB.cohorts[server_round - 1]
        while len(nodes := list(grid.get_node_ids())) < len(cohort):
            time.sleep(0.1)  # they connect one after the other
        JOB.start_round()
        for node, client in zip(nodes, cohort, strict=False):
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"client": int(client)})})
            yield Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)

    def aggregate_train(self, server_round, replies):
        result = super().aggregate_train(server_round, replies)
        JOB.end_round()
        return result


server = ServerApp()


@server.main()
def serve(grid, context):
    strategy = Strategy(fraction_evaluate=0.0, weighted_by_key="weight")
    rounds = len(JOB.schedule())
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(MODEL.state_dict()), num_rounds=rounds)
    MODEL.load_state_dict(result.arrays.to_torch_state_dict())
    JOB.finish(MODEL.arrays(), ["flwr", "ray", "torch", "numpy"])


run_simulation(
    server,
    app,
    num_supernodes=JOB.cohorts.shape[1],
    backend_config={
        "init_args": {"num_cpus": 1, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    },
)
