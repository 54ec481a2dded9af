"""The `scfusion` command: one module for each group of sub-commands, their flags beside their handlers."""
