"""End-to-end benchmarks: fixed workloads of random prompts through the whole engine."""
