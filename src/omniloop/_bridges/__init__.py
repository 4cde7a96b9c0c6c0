"""Bridges between sync and async code: background calls, groups, iteration, managers, queues and shared resources."""
