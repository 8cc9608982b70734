"""Metrics of agent and controller: what is counted, how it is written for Prometheus, and where it is asked for."""
