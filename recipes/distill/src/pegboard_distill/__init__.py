"""Knowledge distillation: a student learns the distributions of a teacher."""
