"""Which cells are fitted, tuned on and tested, what could have leaked, and how scores spread."""
