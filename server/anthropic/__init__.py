"""Anthropic's Messages API: routes and shapes."""
