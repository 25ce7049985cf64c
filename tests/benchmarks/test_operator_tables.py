"""docs/operators.md is what the command writes from today's tables."""

from __future__ import annotations

import pytest

from benchmarks.operator_tables import DOCUMENT, best, document
from edgesam_deploy.targets.rules import report_table


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python -m benchmarks.operator_tables"


@pytest.mark.parametrize(
    ("target", "operator", "status"),
    [
        ("qnn", "Sin", "supported"), ("qnn", "NonZero", "unsupported"), ("tensorrt11", "Sin", "partial"),
        ("tensorrt11", "DFT", "unknown"), ("tv", "Gelu", "unknown"),
    ],
)  # fmt: skip
def test_a_cell_is_the_best_that_the_table_says(target, operator, status):
    assert best(report_table(target), operator) == status
