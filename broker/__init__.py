"""A reverse proxy that stands in front of upstream APIs and holds the tokens, so that the caller never does."""

__version__ = "0.1.0"
