"""Group relative policy optimisation: answers to one prompt are compared with each other."""
