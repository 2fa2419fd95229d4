"""Random signs by counting: Philox4x32-10, whose bits depend on a key and a counter alone.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. In integer arithmetic
of torch, so that every device makes the same signs where they are needed, and none of them is moved.
"""

from __future__ import annotations

from functools import cache

import torch

SIGNS_A_COUNTER = 128
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counters: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    """Four random words for each counter: (n, 4) to (n, 4), int64, as the key in numbers below 2^32."""
    c0, c1, c2, c3 = counters.unbind(1)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The products wrap around in 64 bits, which leaves both their halves as they are without a sign.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((second >> 32) & _LOW) ^ c1 ^ k0, ((first >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=1)


def signs(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Signs 1 and -1 of `count` counters from `start` on, (count, SIGNS_A_COUNTER), float32.

    `key` has 128 bits: the lower half is Philox's key, the upper half the upper half of every counter.
    """
    words = [(key >> shift) & _LOW for shift in (0, 32, 64, 96)]
    low = torch.arange(start, start + count, device=device)
    counters = torch.stack(
        [low & _LOW, low >> 32, torch.full_like(low, words[2]), torch.full_like(low, words[3])], dim=1
    )
    found = philox(counters, (words[0], words[1]))  # (count, 4)
    octets = found.to(torch.int32).view(torch.uint8).flatten()  # lowest byte of a word first
    return signs_of_bytes(device).index_select(0, octets.int()).view(count, SIGNS_A_COUNTER).float()


@cache
def signs_of_bytes(device: torch.device) -> torch.Tensor:
    """The eight signs of each byte, from its lowest bit up, (256, 8), int8."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return (2 * bits - 1).to(device, torch.int8)
