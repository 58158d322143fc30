"""The paper's evaluation on real data: runs, tables and figures, each by one command.

`python -m experiments --help`; see README.md in this folder.
"""
