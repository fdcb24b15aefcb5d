"""YAML, environment and secret files, read once into frozen dataclasses."""

from broker.config.loading import load, load_for_operator, loads
from broker.config.problems import ConfigErrors, Notice, Problem
from broker.config.settings import Settings
from broker.config.sources import HostSource, PretendedSource

__all__ = [
    "ConfigErrors",
    "HostSource",
    "Notice",
    "PretendedSource",
    "Problem",
    "Settings",
    "load",
    "load_for_operator",
    "loads",
]
