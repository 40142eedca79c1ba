"""The commands: parse, call, print. Heavy libraries are imported inside the commands."""

from orchestrator.commands import asking, training, viewing
from orchestrator.commands.options import app

__all__ = ["app", "asking", "training", "viewing"]
