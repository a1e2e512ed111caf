"""What environments are made of: the tasks of DMControl, those that the TD-MPC2 authors added, perturbed worlds."""
