"""The truth: a step-level simulator of inference engines that knows every request's joules, and what judges by it.

Nothing here imports the core or the twin: what judges the estimator shares no code with it.
"""
