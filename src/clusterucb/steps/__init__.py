"""What a run does, one step a file: what is needed, what is made, how."""
