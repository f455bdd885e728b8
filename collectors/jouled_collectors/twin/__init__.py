"""The digital twin of an inference node: devices, two engines under load, spans, and the truth about every joule.

A process of its own (`python -m jouled_collectors.twin`) that outlives the daemon. Its devices enter the daemon
through an ordinary power collector, its engines through pages and spans in vLLM's format.
"""
