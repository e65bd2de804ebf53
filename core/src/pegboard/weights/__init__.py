"""Weights on disk: safetensors files and folders, read lazily and written tensor by tensor."""

from __future__ import annotations

from pegboard.weights.compare import compare_names_shapes
from pegboard.weights.folder import write_model
from pegboard.weights.header import check_safetensors
from pegboard.weights.read import SafetensorsTensor, read_folder, read_metadata, read_safetensors
from pegboard.weights.write import Room, overwrite, write_safetensors

__all__ = [
    "Room",
    "SafetensorsTensor",
    "check_safetensors",
    "compare_names_shapes",
    "overwrite",
    "read_folder",
    "read_metadata",
    "read_safetensors",
    "write_model",
    "write_safetensors",
]
