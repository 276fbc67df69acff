"""Noise that is never used twice: its key streams, its normals and integers, its mechanism."""
