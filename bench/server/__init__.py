"""What the HTTP side alone can deliver: the real server in front of an engine that computes nothing."""
