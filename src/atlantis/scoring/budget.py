"""How many padded tokens one forward pass may hold."""

from collections.abc import Callable

CPU_TOKENS = 512
"""Off a GPU: activations that stay near the processor's caches; more is not faster."""
MOST_TOKENS = 65_536
"""A GPU is saturated well below this."""

_FEWEST_TOKENS = 1024
_PROBES = (2048, 8192)
_USED_SHARE = 0.8
"""Of the free memory; the rest is for fragmentation and for other people's processes."""


def probed_budget(peak_bytes: Callable[[int], int], *, free_bytes: int) -> int:
    """The budget that fits, from the memory of two trial passes.

    Memory is a constant (the head's chunk of logits) and a share per token. The budget is rounded
    down to a power of two, so that the same machine finds the same one every time.

    Args:
        peak_bytes: Runs a pass over so many tokens and returns the memory it took at its peak.
        free_bytes: Memory that is free before.
    """
    few, many = _PROBES
    used_few, used_many = peak_bytes(few), peak_bytes(many)
    per_token = max(1.0, (used_many - used_few) / (many - few))
    constant = max(0.0, used_few - few * per_token)
    fits = int((_USED_SHARE * free_bytes - constant) / per_token)
    if fits < _FEWEST_TOKENS:
        return _FEWEST_TOKENS  # a batch that does not fit is halved later on
    return min(MOST_TOKENS, 1 << (fits.bit_length() - 1))
