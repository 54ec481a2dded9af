"""The `scfusion` command: one module for each group of sub-commands, each with its flags beside its handler.

Handlers import what they run, so that a help text needs neither torch nor transformers.
"""
