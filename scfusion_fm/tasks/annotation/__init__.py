"""Cell-type annotation, with and without proteins."""
