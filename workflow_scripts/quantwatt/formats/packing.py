"""Codes of 1 to 8 bits in a row of bytes, without gaps."""

import numpy as np
import torch


def packed_bytes(columns, bits):
    """Bytes of one packed row."""
    return -(-columns * bits // 8)


def pack(codes, bits):
    """Pack codes, most significant bit first, each row padded to whole bytes.

    With 4 bits the first code of a pair is the high half of the byte, as bitsandbytes stores it.

    Args:
        codes: [rows, columns] uint8, every value below 2**bits.
    Returns:
        [rows, packed_bytes(columns, bits)] uint8.
    """
    rows, columns = codes.shape
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    bit_rows = (codes.numpy()[:, :, None] >> shifts & 1).reshape(rows, columns * bits)
    return torch.from_numpy(np.packbits(bit_rows, axis=1))


def unpack(packed, bits, columns):
    """The inverse of `pack`: [rows, columns] uint8."""
    bit_rows = np.unpackbits(packed.numpy(), axis=1, count=columns * bits).reshape(len(packed), columns, bits)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint8)
    return torch.from_numpy((bit_rows * weights).sum(axis=2, dtype=np.uint8))
