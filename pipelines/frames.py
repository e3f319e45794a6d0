"""The tables' declarations as Polars schemas, and frames that are held to them."""

import polars as pl

from warehouse.frames import schema
from warehouse.tables import Table

__all__ = ["conform", "schema", "violations"]


def conform(frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """Return `frame` with the table's columns, types and order of rows.

    Raises `polars.exceptions.PolarsError` for a missing column or a value that does not fit.
    """
    return frame.select(
        pl.col(name).cast(dtype, strict=True) for name, dtype in schema(table).items()
    ).sort([name for name, _ in table.order], descending=[way == "desc" for _, way in table.order])


def violations(frame: pl.DataFrame, table: Table) -> list[str]:
    """Say in sentences what is wrong with a table: schema, nulls, duplicate keys."""
    if frame.schema != schema(table):
        return [f"{table.name}: the schema is {frame.schema}, not {schema(table)}"]
    found = [
        f"{table.name}.{column.name}: {count} nulls"
        for column in table.columns
        if not column.is_nullable and (count := frame[column.name].null_count())
    ]
    if duplicates := frame.height - frame.select(table.key).unique().height:
        found.append(f"{table.name}: {duplicates} rows share a key {table.key}")
    return found
