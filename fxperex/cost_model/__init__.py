"""Prices: what a site's kernels and every other operation of the step amount to."""
