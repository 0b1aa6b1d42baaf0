"""Before anything is rented: the training step compiled for devices that need not exist, and what it would take."""

from jaxsae.plan.page import page
from jaxsae.plan.plan import Plan, plan
from jaxsae.plan.topology import Chip, Target, open_target

__all__ = ["Chip", "Plan", "Target", "open_target", "page", "plan"]
