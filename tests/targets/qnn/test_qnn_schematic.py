from __future__ import annotations

from edgesam_deploy.targets.qnn.schematic import Traffic, read_traffic

TEXT = b"""\x00\x01tcm_block_info = {
    368: (0x800, 0xc0000),
    369: (0x63000, 0x100),
}
bandwidth_information = [
{"opid" : 0x1 , "dram_read": 700 , "dram_write": 0 , "vtcm_read": 0 , "vtcm_write": 700, "is_dma": 1},
{"opid" : 0x2 , "dram_read": 0 , "dram_write": 50 , "vtcm_read": 9 , "vtcm_write": 8, "is_dma": 0},
]\xff"""


def test_traffic_is_summed_over_partitions(tmp_path):
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for path in paths:
        path.write_bytes(TEXT)
    assert read_traffic(paths[:1]) == Traffic(700, 50, 9, 708, 2, 1, 0xC0800)
    assert read_traffic(paths) == Traffic(1400, 100, 18, 1416, 4, 2, 0xC0800)
    assert read_traffic(paths[:1]).dram == 750


def test_a_schematic_that_says_nothing_is_none(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"another format")
    assert read_traffic([tmp_path / "a.bin"]) is None
    assert read_traffic([]) is None
