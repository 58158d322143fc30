"""Plumbing: the door to the array libraries, numerics and checks; no maths of the paper."""
