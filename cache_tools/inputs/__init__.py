"""Student inputs as columns: they are made once, like embeddings, but their rows differ in length."""

from cache_tools.inputs.base import Featuriser
from cache_tools.inputs.graph import MoleculeGraph
from cache_tools.inputs.pixels import EncodedImage, Pixels
from cache_tools.inputs.tokens import TokenIds

__all__ = ["EncodedImage", "Featuriser", "MoleculeGraph", "Pixels", "TokenIds"]
