"""YAML, environment and secret files, read once into frozen dataclasses."""

from broker.config.loading import load, loads
from broker.config.problems import ConfigErrors, Notice, Problem
from broker.config.settings import Settings

__all__ = ["ConfigErrors", "Notice", "Problem", "Settings", "load", "loads"]
