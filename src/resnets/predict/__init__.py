"""Classify images with a shipped model."""
