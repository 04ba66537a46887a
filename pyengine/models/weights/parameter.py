"""How a graph tells the loader which weights it needs: one Parameter per tensor that it keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a graph, stacked from the rows of one or more checkpoint tensors.

    Attributes:
        name: the graph's own, such as "layers.3.qkv".
        parts: (checkpoint name, rows) from top to bottom; more than one for a fused projection.
        num_cols: columns of a matrix, which is kept packed; None: a vector, kept plain.
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    num_cols: int | None = None

    @property
    def num_rows(self) -> int:
        return sum(rows for _, rows in self.parts)

    def part_shape(self, rows: int) -> tuple[int, ...]:
        return (rows,) if self.num_cols is None else (rows, self.num_cols)
