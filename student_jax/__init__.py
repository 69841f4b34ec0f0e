"""The JAX side: trains a small student on a feature store, then evaluates and solves with it."""

__version__ = "0.1.0"  # the project's; pyproject.toml and what is told of it elsewhere follow
