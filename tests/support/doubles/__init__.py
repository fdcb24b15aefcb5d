"""Doubles of the four authorization servers of the seeds. They behave to the letter and refuse everything else."""
