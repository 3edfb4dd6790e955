"""Models of text: integer tokens ``int[batch, time]`` to logits ``f32[batch, time, vocabulary]``."""

from __future__ import annotations

import jax
from flax import linen as nn

from fedjax_sim.models.layers import LSTM

__all__ = ["char_lstm"]


def char_lstm(vocabulary: int, embedding: int = 8, hidden: int = 256, layers: int = 2) -> nn.Module:
    """The character model of federated Shakespeare: embedding, stacked LSTM, logits for the next character.

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017, as in LEAF;
    with a vocabulary of 90 it has the 820,522 parameters of Reddi et al., "Adaptive federated optimization", 2021.

    Args:
      vocabulary: number of characters, those for padding and the unknown included.
      embedding: size of a character's embedding.
      hidden: size of the state of each LSTM.
      layers: number of LSTMs.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models
    >>> variables = models.char_lstm(90).init(jax.random.key(0), jnp.zeros((1, 80), jnp.int32), train=False)
    >>> models.count_parameters(variables)
    820522
    """
    return CharLSTM(vocabulary=vocabulary, embedding=embedding, hidden=hidden, layers=layers)


class CharLSTM(nn.Module):
    """See ``char_lstm``."""

    vocabulary: int
    embedding: int
    hidden: int
    layers: int

    @property
    def classes(self) -> int:
        """Number of labels, which are characters too."""
        return self.vocabulary

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.embedding)(x)
        for _ in range(self.layers):
            x = LSTM(self.hidden)(x)
        return nn.Dense(self.vocabulary)(x)
