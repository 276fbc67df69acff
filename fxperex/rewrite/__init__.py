"""Capture + Analysis + Plan -> the step graph."""
