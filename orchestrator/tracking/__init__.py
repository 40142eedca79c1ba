"""Sending the runs of the store to MLflow. Only this package imports MLflow.

A **tracker** reads runs from the store and sends what MLflow lacks; it can send everything again.
A **tracking recorder** does so in a thread while runs train, so that training never waits for the
server. MLflow cannot delete a logged metric, so only **final epochs** are sent: those that will
not be trained again. The **report** of a profile, its tables and figures, is one MLflow run.
"""

from orchestrator.errors import TrackingError
from orchestrator.tracking.recorder import TrackingRecorder
from orchestrator.tracking.tracker import Tracker, tracker_for, tracking_folder, tracking_uri

__all__ = [
    "Tracker",
    "TrackingError",
    "TrackingRecorder",
    "tracker_for",
    "tracking_folder",
    "tracking_uri",
]
