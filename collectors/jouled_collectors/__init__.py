"""The collectors jouled ships: power sources, inference engines, request receivers and the twin."""
