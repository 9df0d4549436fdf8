"""Export: a checkpoint is read, traced once and written as a bundle."""
