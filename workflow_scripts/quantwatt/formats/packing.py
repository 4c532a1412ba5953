"""Pack codes of 1 to 8 bits into rows of bytes, without gaps."""

import torch
from torch.nn.functional import pad


def packed_bytes(columns: int, bits: int) -> int:
    """Return the bytes of one packed row."""
    return -(-columns * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes, most significant bit first, and pad each row to whole bytes.

    With 4 bits, the first code of a pair is in the high half of the byte, as in bitsandbytes.

    Args:
        codes: [rows, columns] uint8, every value below 2**bits.
    Returns:
        [rows, packed_bytes(columns, bits)] uint8.
    """
    rows, columns = codes.shape
    eights = pad(codes, (0, -columns % 8)).reshape(rows, -1, 8)
    word = torch.zeros(eights.shape[:2], dtype=torch.int64, device=codes.device)  # 8 codes in the last `bits` bytes
    for i in range(8):
        word = word.bitwise_left_shift_(bits).bitwise_or_(eights[:, :, i])
    parts = [(word >> 8 * (bits - 1 - i) & 255).to(torch.uint8) for i in range(bits)]
    return torch.stack(parts, dim=2).reshape(rows, -1)[:, : packed_bytes(columns, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Invert `pack`: returns [rows, columns] uint8."""
    rows, width = packed.shape
    groups = pad(packed, (0, -width % bits)).reshape(rows, -1, bits)
    word = torch.zeros(groups.shape[:2], dtype=torch.int64, device=packed.device)
    for i in range(bits):
        word = word.bitwise_left_shift_(8).bitwise_or_(groups[:, :, i])
    parts = [(word >> bits * (7 - i) & 2**bits - 1).to(torch.uint8) for i in range(8)]
    return torch.stack(parts, dim=2).reshape(rows, -1)[:, :columns].contiguous()
