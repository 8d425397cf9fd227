"""Measures the services of this repository against their peers, on one machine, in one run.

In the order data flows: `__main__` reads the command line; `servers` has the broker and Redis; `contestants` names what
is compared and how it starts; `events` makes the load's content and `load` sends it; `scenarios` says what is measured;
`results` keeps the figures; `report` and `plot` turn them into docs/BENCHMARKS.md.
"""
