"""Training data from Parquet files."""
