"""The public functions: one module a family."""
