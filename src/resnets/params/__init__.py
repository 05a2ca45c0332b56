"""Hold what a user sets: params.yaml, its schema, and the table of networks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnets.params.load import load_params

__all__ = ["load_params"]


def __getattr__(name: str) -> object:
    """Import the reader of YAML only for who reads parameters: model files have a schema too."""
    if name == "load_params":
        from resnets.params.load import load_params

        return load_params
    raise AttributeError(f"module {__name__} has no attribute {name}")
