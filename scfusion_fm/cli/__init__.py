"""
The `scfusion` command: `main` puts it together, the sub-commands are in the modules beside it.

The flags of a sub-command stand beside its handler. Handlers import what they run, so that a help text needs neither
torch nor transformers.
"""
