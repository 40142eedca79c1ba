"""MLflow as a projection of the store. This package alone imports MLflow.

Whatever MLflow shows is read from the store and sent by a thread of its own, so a slow or dead
server costs training nothing, and everything can be sent again. MLflow cannot take a value back,
so it gets only epochs that will not be trained again.
"""

from orchestrator.errors import TrackingError
from orchestrator.tracking.recorder import TrackingRecorder
from orchestrator.tracking.tracker import OVERALL_TAG, Tracker, tracking_uri

__all__ = ["OVERALL_TAG", "Tracker", "TrackingError", "TrackingRecorder", "tracking_uri"]
