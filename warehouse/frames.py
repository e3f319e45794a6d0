"""The tables as Polars schemas. Apart from `tables`, because the API has no Polars."""

import polars as pl

from warehouse.tables import Kind, Table

POLARS_TYPES: dict[Kind, type[pl.DataType]] = {
    Kind.INT: pl.Int64,
    Kind.FLOAT: pl.Float64,
    Kind.BOOL: pl.Boolean,
    Kind.TEXT: pl.String,
}


def schema(table: Table) -> pl.Schema:
    """Return the table's Polars schema."""
    return pl.Schema({column.name: POLARS_TYPES[column.kind] for column in table.columns})


def empty(table: Table) -> pl.DataFrame:
    """Return the table without rows."""
    return pl.DataFrame(schema=schema(table))
