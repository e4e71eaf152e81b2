"""From predictions to numbers: metrics of one arm, and comparisons between arms."""
