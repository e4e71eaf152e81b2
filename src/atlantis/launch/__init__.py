"""Trainings in several processes: accelerate configurations, and what a launch asks for.

The command line starts the processes, ``training`` compares what came out with what was asked.
"""
