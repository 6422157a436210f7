"""Methods: the lists of turns that the loop runs. Algorithm 1 is in dollar.py, pre-training in pretraining.py."""

from dollar.methods.dollar import Dollar
from dollar.methods.ingredients import Ingredients
from dollar.methods.preference import OnPairs
from dollar.methods.pretraining import OneLoss
from dollar.methods.surrogate_alone import SurrogateAlone

__all__ = ["Dollar", "Ingredients", "OnPairs", "OneLoss", "SurrogateAlone"]
