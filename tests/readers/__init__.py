"""Data sets of the reader tests, written by code."""
