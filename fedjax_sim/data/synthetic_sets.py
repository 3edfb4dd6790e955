"""Sets that are drawn from a law."""

from __future__ import annotations

import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split

_SYNTHETIC = 140  # purpose of the generator; above those of `keys`, so that no two decisions share a stream
_FEATURES, _CLASSES = 60, 10


def synthetic(
    alpha: float = 1.0,
    beta: float = 1.0,
    clients: int = 30,
    iid: bool = False,
    seed: int = 0,
    test_fraction: float = 0.1,
) -> Federated:
    """FedProx's synthetic(alpha, beta): softmax labels of Gaussian features, different models and features per client.

    Client ``k`` has ``int(lognormal(4, 2)) + 50`` examples ``x ~ N(v_k, S)``, ``S = diag(j ** -1.2)`` for ``j = 1 .. 60``, with
    labels ``argmax(W_k x + b_k)``. Every element of ``W_k`` and ``b_k`` is ``N(u_k, 1)`` with ``u_k ~ N(0, alpha)``, every element
    of ``v_k`` is ``N(B_k, 1)`` with ``B_k ~ N(0, beta)``. With ``iid`` there is one ``W, b ~ N(0, 1)`` for all, and ``v = 0``. The paper
    writes alpha and beta as variances, its code takes them for standard deviations: this follows the code, whose data the
    published curves are of; for 0 and 1 they are the same.

    Columns: ``x`` is ``f32[examples, 60]``, ``y`` is ``int32[examples]``, 10 classes.

    Args:
      alpha: how much clients' models differ, 0 or above.
      beta: how much clients' features differ, 0 or above.
      clients: how many.
      iid: the same model and features for all; then alpha and beta mean nothing.
      seed: a non-negative integer.
      test_fraction: of each client's examples, as in ``split``.

    Raises:
      ValueError: a number out of range.

    Source: Li et al. 2020 (arXiv 1812.06127), section 5.1 and appendix C.1; Shamir et al. 2014 before it.

    Example:
      >>> import fedjax_sim as fs
      >>> data = fs.data.synthetic(alpha=0.5, beta=0.5)
      >>> data.train.num_clients, data.train.columns["x"].shape[1:], data.classes
      (30, (60,), 10)
    """
    checks.not_negative("alpha", alpha)
    checks.not_negative("beta", beta)
    checks.positive_int("clients", clients)
    generator = keys.host_generator((seed,), _SYNTHETIC)
    normal = generator.standard_normal
    sizes = generator.lognormal(4, 2, clients).astype(np.int64) + 50
    model_means, feature_means = alpha * normal(clients), beta * normal(clients)
    deviations = np.arange(1, _FEATURES + 1) ** -0.6
    shared = normal((_FEATURES, _CLASSES)), normal(_CLASSES)
    xs, ys = [], []
    for client, size in enumerate(sizes):
        weights, bias = shared
        middle = np.zeros(_FEATURES)
        if not iid:
            weights = model_means[client] + normal((_FEATURES, _CLASSES))
            bias = model_means[client] + normal(_CLASSES)
            middle = feature_means[client] + normal(_FEATURES)
        x = middle + deviations * normal((size, _FEATURES))
        xs.append(x.astype(np.float32))
        ys.append(np.argmax(x @ weights + bias, axis=1).astype(np.int32))
    data = ClientData(
        {"x": np.concatenate(xs), "y": np.concatenate(ys)},
        np.concatenate([[0], np.cumsum(sizes)]),
        np.arange(clients),
    )
    name = "synthetic_iid" if iid else f"synthetic_{alpha:g}_{beta:g}"
    return Federated(*split(data, test_fraction, seed), name=name, classes=_CLASSES)
