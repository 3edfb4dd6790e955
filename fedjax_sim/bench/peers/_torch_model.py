"""A job's model in PyTorch: NCHW inside, the exchanged layout (NHWC, HWIO kernels) outside."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Model(nn.Module):
    """Layers in sequence, with the job's weights.

    Args:
      layers: see ``Job``.
      params: weights by name in the exchanged layout.
      scale: what uint8 inputs are multiplied with.
    """

    def __init__(self, layers: list[str], params: dict[str, np.ndarray], scale: float | None):
        super().__init__()
        self.scale = scale
        self.layers = nn.ModuleList()
        self._names: list[tuple[str, str, int]] = []
        channels = flattened = 1
        for layer in layers:
            kind, _, argument = layer.partition(":")
            if kind == "flatten":
                flattened = channels
            if kind == "conv":
                channels = params[f"{argument}/kernel"].shape[-1]
            self.layers.append(_LAYERS[kind](argument, params, flattened))
            self._names.append((kind, argument, flattened))
            if kind == "dense":
                flattened = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is not None:
            x = x.float() * self.scale
        for layer in self.layers:
            x = layer(x)
        return x

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by name in the exchanged layout."""
        found = {}
        for layer, (kind, name, channels) in zip(self.layers, self._names, strict=True):
            weights = {key: value.detach().numpy() for key, value in layer.state_dict().items()}
            if kind == "conv":
                found[f"{name}/kernel"] = weights["weight"].transpose(2, 3, 1, 0)
                found[f"{name}/bias"] = weights["bias"]
            elif kind == "dense":
                found[f"{name}/kernel"] = _pixels_first(weights["weight"].T, channels)
                found[f"{name}/bias"] = weights["bias"]
            elif kind == "embed":
                found[f"{name}/embedding"] = weights["weight"]
            elif kind == "lstm":
                found[f"{name}/kernel"] = weights["lstm.weight_ih_l0"].T
                found[f"{name}/recurrent_kernel"] = weights["lstm.weight_hh_l0"].T
                found[f"{name}/bias"] = weights["lstm.bias_ih_l0"]
        return {name: value.copy() for name, value in found.items()}


def inputs(column: np.ndarray) -> torch.Tensor:
    """A column of inputs: images with their channels first, tokens as integers of 64 bits."""
    if column.ndim == 4:
        column = np.ascontiguousarray(column.transpose(0, 3, 1, 2))
    tensor = torch.from_numpy(column)
    return tensor.long() if column.dtype == np.int32 else tensor


def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over a batch, and over positions where there are any."""
    return nn.functional.cross_entropy(outputs.flatten(0, -2), labels.flatten())


def _set(parameter: nn.Parameter, value: np.ndarray) -> None:
    parameter.data = torch.from_numpy(np.ascontiguousarray(value))


def _channels_first(kernel: np.ndarray, channels: int) -> np.ndarray:
    """``[pixels * channels, out]`` to ``[channels * pixels, out]``: what follows a flattened image."""
    return kernel.reshape(-1, channels, kernel.shape[-1]).swapaxes(0, 1).reshape(kernel.shape)


def _pixels_first(kernel: np.ndarray, channels: int) -> np.ndarray:
    return kernel.reshape(channels, -1, kernel.shape[-1]).swapaxes(0, 1).reshape(kernel.shape)


def _conv(name: str, params: dict[str, np.ndarray], channels: int) -> nn.Module:
    kernel = params[f"{name}/kernel"]
    layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[:2])
    _set(layer.weight, kernel.transpose(3, 2, 0, 1))
    _set(layer.bias, params[f"{name}/bias"])
    return layer


def _dense(name: str, params: dict[str, np.ndarray], channels: int) -> nn.Module:
    kernel = params[f"{name}/kernel"]
    layer = nn.Linear(*kernel.shape)
    _set(layer.weight, _channels_first(kernel, channels).T)
    _set(layer.bias, params[f"{name}/bias"])
    return layer


def _embed(name: str, params: dict[str, np.ndarray], channels: int) -> nn.Module:
    layer = nn.Embedding(*params[f"{name}/embedding"].shape)
    _set(layer.weight, params[f"{name}/embedding"])
    return layer


class _LSTM(nn.Module):
    """PyTorch adds two biases, and SGD would move their sum twice as far: the second stays at zero."""

    def __init__(self, name: str, params: dict[str, np.ndarray], channels: int):
        super().__init__()
        kernel, recurrent = params[f"{name}/kernel"], params[f"{name}/recurrent_kernel"]
        self.lstm = nn.LSTM(kernel.shape[0], recurrent.shape[0], batch_first=True)
        _set(self.lstm.weight_ih_l0, kernel.T)
        _set(self.lstm.weight_hh_l0, recurrent.T)
        _set(self.lstm.bias_ih_l0, params[f"{name}/bias"])
        _set(self.lstm.bias_hh_l0, np.zeros_like(params[f"{name}/bias"]))
        self.lstm.bias_hh_l0.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


_LAYERS = {
    "conv": _conv,
    "dense": _dense,
    "embed": _embed,
    "lstm": _LSTM,
    "relu": lambda argument, params, channels: nn.ReLU(),
    "pool": lambda argument, params, channels: nn.MaxPool2d(int(argument)),
    "flatten": lambda argument, params, channels: nn.Flatten(),
}
