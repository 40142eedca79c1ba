"""The commands: parse, call, print. Heavy libraries are imported inside the commands."""

from orchestrator.commands import asking, bundling, exporting, training, viewing
from orchestrator.commands.options import app

__all__ = ["app", "asking", "bundling", "exporting", "training", "viewing"]
