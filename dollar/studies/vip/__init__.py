"""What each part of V.I.P. does: losses, weights, stages, fresh pairs, and the orders of small and few-step."""

from dollar.studies.vip.content import VIP
from dollar.studies.vip.runs import Smaller

__all__ = ["VIP", "Smaller"]
