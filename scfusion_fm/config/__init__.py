"""Settings of every command as dataclasses, how they are read, and how a command begins and ends."""
