"""Read the files in which counts are exchanged, and bring them onto a vocabulary."""
