"""Proteins of partial panels: those that a cell lacks, from its RNA and from those that it has."""
