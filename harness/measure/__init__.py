"""Costs of a model: parameters, multiply-accumulates, latency and memory."""
