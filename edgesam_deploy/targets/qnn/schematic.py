"""What a compiled part moves through memory, read from the schematic that the compiler writes about it.

The format is undocumented; rows of its ``bandwidth_information`` are read by the names of their fields. The figures are
the compiler's own, of the program it made: the same for every build, and no latency.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ROW = re.compile(
    rb'"dram_read": (\d+) , "dram_write": (\d+) , "vtcm_read": (\d+) , "vtcm_write": (\d+), "is_dma": ([01])'
)
_BLOCKS = re.compile(rb"tcm_block_info = \{(.*?)\}", re.DOTALL)
_BLOCK = re.compile(rb"\(0x([0-9a-f]+), 0x([0-9a-f]+)\)")


@dataclass(frozen=True)
class Traffic:
    """Bytes moved between the HTP and DRAM and its own memory (VTCM) in one run, and the operations that do it.

    vtcm_peak: the highest address in use, in bytes.
    """

    dram_read: int
    dram_write: int
    vtcm_read: int
    vtcm_write: int
    htp_operations: int
    dma_operations: int
    vtcm_peak: int

    @property
    def dram(self) -> int:
        """Bytes read from and written to DRAM together."""
        return self.dram_read + self.dram_write


def read_traffic(schematics: Iterable[Path]) -> Traffic | None:
    """The sums over the schematics of a part's partitions; None where none of them tells."""
    rows: list[list[int]] = []
    peak = 0
    for path in schematics:
        data = path.read_bytes()
        rows += [[int(number) for number in match.groups()] for match in _ROW.finditer(data)]
        blocks = (block for table in _BLOCKS.findall(data) for block in _BLOCK.findall(table))
        peak = max([peak, *(int(start, 16) + int(size, 16) for start, size in blocks)])
    if not rows:
        return None
    read, write, vtcm_read, vtcm_write, dma = (sum(column) for column in zip(*rows, strict=True))
    return Traffic(read, write, vtcm_read, vtcm_write, len(rows), dma, peak)
