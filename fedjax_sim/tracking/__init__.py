"""Trackers: where the metrics of a run are written while it runs."""

from fedjax_sim.tracking._csv import Csv
from fedjax_sim.tracking._json_lines import JsonLines
from fedjax_sim.tracking._recorder import Recorder
from fedjax_sim.tracking._rows import as_json, evaluation_row, round_rows, write_json
from fedjax_sim.tracking._tensorboard import TensorBoard
from fedjax_sim.tracking._tracker import Lenient, Tracker
from fedjax_sim.tracking._wandb import WeightsAndBiases

__all__ = [
    "Csv",
    "JsonLines",
    "Lenient",
    "Recorder",
    "TensorBoard",
    "Tracker",
    "WeightsAndBiases",
    "as_json",
    "evaluation_row",
    "round_rows",
    "write_json",
]
