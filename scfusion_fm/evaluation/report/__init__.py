"""Pages and pictures about runs and evaluations."""
