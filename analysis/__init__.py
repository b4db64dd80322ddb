"""Behaviour statistics, comparisons, plots, the memory plan, the viewer.

Nothing here changes a run. You can skip it until you have results to look at.
"""
