"""The adapter as data, and as a file: the names that the rest of the house uses."""

from trainer.adapter.factors import Adapter, LowRank
from trainer.adapter.reading import LoadedAdapter, load
from trainer.adapter.writing import save

__all__ = ["Adapter", "LoadedAdapter", "LowRank", "load", "save"]
