"""Let heads start where linear and kernel methods end."""
