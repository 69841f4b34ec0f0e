"""The JAX side: trains a small student on a feature store, then evaluates and solves with it."""
