"""Contracts and small tools that every floor above may import."""
