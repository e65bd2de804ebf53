"""Front door of the source."""

from pegboard.plugins.spec import PluginSpec

SOURCE = PluginSpec(
    kind="source", target="pegboard_parquet.source:ParquetSource", schema="pegboard_parquet.options:ParquetOptions"
)
