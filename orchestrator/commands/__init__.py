"""The commands: parse, call, print. Heavy libraries are imported inside the commands."""

from orchestrator.commands import asking, exporting, training, viewing
from orchestrator.commands.options import app

__all__ = ["app", "asking", "exporting", "training", "viewing"]
