"""Which genes and proteins there are, in genome order, and what files call them."""
