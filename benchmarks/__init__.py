"""Speed and memory, each beside what a user would use instead."""
