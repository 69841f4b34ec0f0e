"""What `python -m student_jax.serve` is made of: what comes in, who answers, what goes out."""
