"""What the teacher's and the student's side agree on; its core imports neither torch nor jax."""
