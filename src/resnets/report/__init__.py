"""Show on one page what the pipeline found, how well it learned, and what to do next."""
