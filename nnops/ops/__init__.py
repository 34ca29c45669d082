"""The operators: one file per family, each with its formulas and its mounted routers."""
