"""Answer images over HTTP with a shipped model."""
