"""The plan of a run: windows, schedule, prompts, cost, layout of the ranks, and how it is printed. Imports no torch."""
