"""Arrays, features and records on disk; needs NumPy only. Its doors are `store` and `readers`."""
