"""Norms that are never low, and how far rounding moves a sum."""
