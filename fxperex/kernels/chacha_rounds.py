"""The constants of ChaCha20 (RFC 8439, section 2.3), for the reference and the GPU's kernel."""

from __future__ import annotations

CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
PER_BLOCK = 8  # 64-bit words
ROUNDS = 10  # of a column and a diagonal round
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
MASK = 0xFFFFFFFF
