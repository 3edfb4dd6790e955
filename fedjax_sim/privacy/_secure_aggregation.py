"""What secure aggregation costs in traffic."""

from __future__ import annotations

from fedjax_sim._src import checks

_KEY_BITS = 256


def secure_aggregation_bits(clients: int, dimension: int, value_bits: int = 16) -> int:
    """Bits that a client sends and receives in one round of secure aggregation in which nobody drops out.

    Two public keys of every client, encrypted shares of two secrets for and from the others, and the masked vector, whose numbers
    are wide enough for the sum of all clients.

    Args:
      clients: that take part, 2 or more.
      dimension: numbers of the vector.
      value_bits: of a number before masking.

    Raises:
      ValueError: a number out of range.

    Source: Bonawitz et al. 2017, "Practical Secure Aggregation", section 7.1: with keys and shares of 256 bits
    ``2n * 256 + (5n - 4) * 256 + d * ceil(log2(n * (2^value_bits - 1) + 1))``.

    Example:
      >>> import fedjax_sim as fs
      >>> round(fs.privacy.secure_aggregation_bits(1024, 2**20) / (2**20 * 16), 3)
      1.734
    """
    checks.positive_int("clients", clients)
    checks.positive_int("dimension", dimension)
    checks.positive_int("value_bits", value_bits)
    if clients < 2:
        raise ValueError("clients is 1, expected at least 2: a sum of one client hides nothing.")
    largest = clients * (2**value_bits - 1)
    return (2 * clients + 5 * clients - 4) * _KEY_BITS + dimension * largest.bit_length()
