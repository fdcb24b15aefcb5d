"""YAML, environment and secret files, read once into frozen dataclasses."""
