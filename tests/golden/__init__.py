"""Golden outputs of the reference GR00T N1.5 backbone; tools/make_golden.py writes them."""
