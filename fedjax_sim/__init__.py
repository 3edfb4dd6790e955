"""fedjax_sim: federated-learning simulation on JAX, whole rounds of many clients as one compiled program."""

from fedjax_sim import aggregation, algorithms, data, engines, metrics, models, privacy, rules, tasks
from fedjax_sim._src.types import (
    Algorithm,
    ClientContext,
    ClientRule,
    Delta,
    Facts,
    Mean,
    Message,
    Noise,
    RoundContext,
    Stage,
    StepContext,
    Task,
    Transform,
    Variables,
)
from fedjax_sim.checkpoint import CheckpointError, Checkpoints
from fedjax_sim.data import ClientData, cohorts, partitions
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.engines import SimState
from fedjax_sim.evaluation import Evaluation, evaluate
from fedjax_sim.history import Costs, Histories, History, Score
from fedjax_sim.personalisation import Personalised
from fedjax_sim.simulate import NonFiniteModelError, Progress, Simulation

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "CheckpointError",
    "Checkpoints",
    "ClientContext",
    "ClientData",
    "ClientRule",
    "Costs",
    "Delta",
    "Evaluation",
    "Facts",
    "Histories",
    "History",
    "LocalWork",
    "Mean",
    "Message",
    "Noise",
    "NonFiniteModelError",
    "Personalised",
    "Progress",
    "RoundContext",
    "Score",
    "SimState",
    "Simulation",
    "Stage",
    "StepContext",
    "Task",
    "Transform",
    "Variables",
    "aggregation",
    "algorithms",
    "cohorts",
    "data",
    "engines",
    "evaluate",
    "metrics",
    "models",
    "partitions",
    "privacy",
    "rules",
    "tasks",
]
