"""Hold what a user sets: params.yaml, its schema, and the table of networks."""

from resnets.params.load import load_params

__all__ = ["load_params"]
