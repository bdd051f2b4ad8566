"""Servers to compare with, each written as its own guide would have it."""
