"""
The `scfusion` command: `main` puts it together, the sub-commands are in `data`, `model`, `training` and `report`.

The flags of a sub-command stand beside its handler. Handlers import what they run, so that a help text needs neither
torch nor transformers.
"""
