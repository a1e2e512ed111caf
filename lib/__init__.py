"""Speculative TD-MPC2: the tested code behind the notebooks. The README says what each file holds."""
