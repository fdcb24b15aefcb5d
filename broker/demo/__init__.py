"""A whole installation on loopback, for a first look. Not for production."""
