"""The tables as Arrow schemas. Apart from `tables`, because the API has no Arrow (25 MB)."""

import pyarrow as pa

from warehouse.tables import Kind, Table

ARROW_TYPES = {
    Kind.INT: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.BOOL: pa.bool_(),
    Kind.TEXT: pa.string(),
}


def schema(table: Table) -> pa.Schema:
    """Return the table's Arrow schema."""
    return pa.schema(
        [
            pa.field(column.name, ARROW_TYPES[column.kind], nullable=column.is_nullable)
            for column in table.columns
        ]
    )
