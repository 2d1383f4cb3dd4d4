"""Predictions of a run's memory, time and disk, and the search for settings that fit."""

from engine.planner.prediction import PARTS, Choice, PhasePrediction, Plan
from engine.planner.resolve import plan

__all__ = ["PARTS", "Choice", "PhasePrediction", "Plan", "plan"]
