"""Bytes: peak memory of a program in its order, scratch of convolutions, what may run twice."""
