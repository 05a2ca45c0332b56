"""Try settings drawn from ranges, as DVC experiments."""
