"""Models of small images and of feature vectors.

Images are ``f32[batch, height, width, channels]``; ``[batch, height, width]`` is taken as one channel. All return
logits ``f32[batch, classes]``. Weights start from flax's defaults (LeCun normal, zero biases) unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn

from fedjax_sim._src import checks

__all__ = ["cifar10_cnn", "cnn", "deeper_cnn", "emnist_cnn", "linear", "mlp", "reference_cnn"]


KernelInit = Literal["lecun_normal", "glorot_uniform"]
"""How weights start: flax's default, or that of Keras, whose first layers of few channels start much smaller."""


INITIALIZERS = {
    "lecun_normal": nn.initializers.lecun_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
}


def linear(classes: int) -> nn.Module:
    """Multinomial logistic regression on the flattened input, ``f32[batch, ...]``.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> model = models.linear(classes=10)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 60)), train=False)
    >>> models.count_parameters(variables)
    610
    """
    return MLP(classes=classes, hidden=())


def mlp(classes: int, hidden: Sequence[int] = (200, 200)) -> nn.Module:
    """Dense layers with ReLU on the flattened input, ``f32[batch, ...]``.

    The default is the "2NN" of McMahan et al., "Communication-efficient learning of deep networks from
    decentralized data", 2017: 199,210 parameters on 28 x 28 pixels and 10 classes.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> variables = models.mlp(classes=10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    >>> models.count_parameters(variables)
    199210
    """
    return MLP(classes=classes, hidden=tuple(hidden))


def cnn(classes: int) -> nn.Module:
    """A default for images from 4 x 4 pixels up: two 3 x 3 convolutions (32, 64), each pooled by 2, and dense 128.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> variables = models.cnn(classes=10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    >>> models.count_parameters(variables)
    53002
    """
    return CNN(classes=classes)


def emnist_cnn(classes: int = 62) -> nn.Module:
    """The convolutional network of federated EMNIST benchmarks, for ``f32[batch, 28, 28, 1]``; 1,206,590 parameters.

    Reddi et al., "Adaptive federated optimization", 2021, table 4; as in FedJAX and TensorFlow Federated.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> variables = models.emnist_cnn().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    >>> models.count_parameters(variables)
    1206590
    """
    return DropoutCNN(classes=classes)


def reference_cnn(classes: int = 10, kernel_init: KernelInit = "lecun_normal") -> nn.Module:
    """One 3 x 3 convolution (32), pooled by 2, and dense 128, for ``f32[batch, 28, 28, 1]``; 693,962 parameters.

    Args:
      classes: logits.
      kernel_init: how weights start; ``"glorot_uniform"`` as in federated tutorials on Keras.

    Raises:
      ValueError: an unknown ``kernel_init``.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> variables = models.reference_cnn().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    >>> models.count_parameters(variables)
    693962
    """
    return ReferenceCNN(classes=classes, kernel_init=_checked(kernel_init))


def deeper_cnn(classes: int = 10, kernel_init: KernelInit = "lecun_normal") -> nn.Module:
    """Two 3 x 3 convolutions (32, 64), each pooled by 2, and dense 256, with dropout 0.25 and 0.5; 431,242 parameters.

    For ``f32[batch, 28, 28, 1]``, and for other images from 10 x 10 pixels up: nothing is padded.

    Args:
      classes: logits.
      kernel_init: as for ``reference_cnn``.

    Raises:
      ValueError: an unknown ``kernel_init``.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> variables = models.deeper_cnn().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    >>> models.count_parameters(variables)
    431242
    """
    return DeeperCNN(classes=classes, kernel_init=_checked(kernel_init))


def cifar10_cnn(classes: int = 10) -> nn.Module:
    """The CIFAR10 network of pfl-research's benchmarks, for ``f32[batch, 32, 32, 3]``; 1,626,442 parameters.

    Granqvist et al., "pfl-research: simulation framework for accelerating research in private federated learning",
    2024. The layers are those of ``emnist_cnn``.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> variables = models.cifar10_cnn().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    >>> models.count_parameters(variables)
    1626442
    """
    return DropoutCNN(classes=classes)


class MLP(nn.Module):
    """See ``mlp``."""

    classes: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = _flatten(x)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.classes)(x)


class CNN(nn.Module):
    """See ``cnn``."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = _with_channels(x)
        for features in (32, 64):
            x = _halved(nn.relu(nn.Conv(features, (3, 3))(x)))
        x = nn.relu(nn.Dense(128)(_flatten(x)))
        return nn.Dense(self.classes)(x)


class DropoutCNN(nn.Module):
    """See ``emnist_cnn`` and ``cifar10_cnn``."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = _with_channels(x)
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
        x = nn.Dropout(0.25, deterministic=not train)(_halved(x))
        x = nn.relu(nn.Dense(128)(_flatten(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class ReferenceCNN(nn.Module):
    """See ``reference_cnn``."""

    classes: int
    kernel_init: KernelInit = "lecun_normal"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        init = INITIALIZERS[self.kernel_init]
        x = nn.relu(nn.Conv(32, (3, 3), padding="VALID", kernel_init=init)(_with_channels(x)))
        x = _halved(x)
        x = nn.relu(nn.Dense(128, kernel_init=init)(_flatten(x)))
        return nn.Dense(self.classes, kernel_init=init)(x)


class DeeperCNN(nn.Module):
    """See ``deeper_cnn``."""

    classes: int
    kernel_init: KernelInit = "lecun_normal"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x, init = _with_channels(x), INITIALIZERS[self.kernel_init]
        for features in (32, 64):
            x = _halved(nn.relu(nn.Conv(features, (3, 3), padding="VALID", kernel_init=init)(x)))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = nn.relu(nn.Dense(256, kernel_init=init)(_flatten(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.classes, kernel_init=init)(x)


def _checked(kernel_init: KernelInit) -> KernelInit:
    checks.one_of("kernel_init", kernel_init, tuple(INITIALIZERS))
    return kernel_init


def _halved(x: jax.Array) -> jax.Array:
    """The largest of two by two pixels."""
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _with_channels(x: jax.Array) -> jax.Array:
    if x.ndim not in (3, 4):
        raise ValueError(
            f"the input has shape {x.shape}, expected [batch, height, width, channels] or [batch, height, width]; "
            "for feature vectors use models.mlp or models.linear."
        )
    return x[..., None] if x.ndim == 3 else x
