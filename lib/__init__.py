"""Speculative TD-MPC2: the tested code behind the notebooks. Files import only from those above them in README's list."""
