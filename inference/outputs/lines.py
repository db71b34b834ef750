"""Text of many rows at once, by Arrow's loops instead of Python's: a million lines take a second, not a minute.

A column is an Arrow array of strings [N], or one string for all rows. Numbers are written as the shortest decimal that reads
back as the same number, so what a reader gets is what Parquet holds.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

Column: TypeAlias = pa.Array | str


def numbers(values: np.ndarray) -> pa.Array:
    """Numbers [N] as their shortest decimals, in the precision of their type: float32 0.1 is '0.1'."""
    return pa.array(values).cast(pa.string())


def decimals(values: np.ndarray) -> np.ndarray:
    """The numbers that the shortest decimals of float32 values [N] are, as float64.

    Sums and differences of these, unlike of the float32 values themselves, are short again: 30.3 - 10.1 and not
    20.19999885559082.
    """
    result: np.ndarray = numbers(values.astype(np.float32)).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return result


def chosen(names: Sequence[str], positions: np.ndarray) -> pa.Array:
    """names[positions], as strings [N]."""
    return pa.array(names, pa.string()).take(pa.array(positions))


def joined(*columns: Column) -> pa.Array:
    """The columns of each row put together, without anything between them: strings [N]."""
    import pyarrow.compute as pc  # of all that `--help` of our verbs would load, one of the slowest

    return pc.binary_join_element_wise(*columns, "")


def encoded(rows: pa.Array) -> bytes:
    """Strings [N], one after the other, in UTF-8."""
    _, offsets, content = rows.buffers()
    if not len(rows) or content is None:
        return b""
    first, last = np.frombuffer(offsets, np.int32, len(rows) + 1, rows.offset * 4)[[0, -1]]
    return content.slice(first, last - first).to_pybytes()
